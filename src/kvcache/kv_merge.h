// SPDX-License-Identifier: Apache-2.0
// Caches that merge: of each KV head a token either starts a slot or joins the newest, and a slot
// is the weighted mean of its tokens: of their keys before RoPE, turned to the position of the
// newest of them, and of their values. A rule says which and with what weight. A query sees every
// slot as it was when the query came: the newest with the tokens so far.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kvcache/kv_tables.h"
#include "spec/params.h"
#include "tensor/view.h"

namespace quern {

class KvMerge {
 public:
  virtual ~KvMerge() = default;
  virtual std::string spec() const = 0;  // canonical text
  virtual int64_t window() const = 0;    // newest tokens that a mean is of; 0: all of a slot
  virtual bool has_tables() const = 0;   // trained parameters beside the weights (kv_tables.h)
  // The rule of one layer; one that has tables decides nothing without.
  virtual Result<std::shared_ptr<const KvMerge>> with_tables(const KvTableSet& tables, size_t layer,
                                                             const KvHeads& heads) const = 0;

  // joins, weights [n, n_kv_heads] <- whether a token joins the newest slot, and its weight,
  // positive; from q [n, n_heads * d_head] and k [n, n_kv_heads * d_head], normed, before RoPE.
  virtual void decide(const KvHeads& heads, MatrixView<const float> q, MatrixView<const float> k,
                      uint8_t* joins, float* weights) const = 0;
  // Takes from heads of queries or keys [n, heads * d_head] what has decided and is no part of
  // attention; once before RoPE and once behind it.
  virtual void clear(int64_t /*d_head*/, MatrixView<float> /*heads*/) const {}
};

struct KvMergeInfo {
  std::string_view name;
  spec::ParamSpecs params;
  std::string_view summary;
  Result<std::unique_ptr<KvMerge>> (*make)(const spec::Params& params);
  std::span<const std::string_view> examples;  // texts that tests walk
};

std::span<const KvMergeInfo> kv_merges();  // the rows of merges.inc
Result<std::unique_ptr<KvMerge>> make_kv_merge(const spec::Call& call);

// What the newest slot of a KV head, which others may join, is the mean of.
class KvOpenSlot {
 public:
  KvOpenSlot(int64_t window, int64_t d_head) : window_(window), d_head_(d_head) {}

  // Adds a token; k and v [d_head] become the means with it. The mean of one token is that to the
  // bit.
  void add(bool starts, float weight, float* k, float* v);

  // Rows (weight, key, value): of the tokens that the mean is of, or one of sum and means where
  // that is all of them.
  int64_t width() const { return 1 + 2 * d_head_; }
  int64_t most_rows() const { return window_ == 0 ? 1 : window_; }
  const std::vector<float>& rows() const { return rows_; }
  std::vector<float>& rows() { return rows_; }
  size_t n_bytes() const { return rows_.capacity() * sizeof(float); }

 private:
  int64_t window_, d_head_;
  std::vector<float> rows_;
};

}  // namespace quern
