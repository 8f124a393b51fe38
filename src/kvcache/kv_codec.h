// SPDX-License-Identifier: Apache-2.0
// Codecs of cached keys and values. A page holds kKeyBlock consecutive positions of the keys, or of
// the values, of one head; once written it never changes. A codec is plain data and pure functions:
// what a page decodes to depends on its bytes alone, and has the same bits at every ISA. Attention
// reads a page as halves or as whole numbers with scales (kernels/level_block.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "kernels/attention.h"
#include "spec/params.h"
#include "tensor/view.h"

namespace quern {

// A page as numbers: keys turned [d_head, kKeyBlock], values [kKeyBlock, d_head].
enum class KvSide : uint8_t { kKeys, kValues };

// Numbers that a codec needs beside its text, fitted to keys or values of one layer: of calibration
// text, once for a model (kv_tables.h); or of the first page of every text.
enum class KvTables : uint8_t { kNone, kOfModel, kOfText };

// What tables are fitted to.
struct KvFitRows {
  KvSide side = KvSide::kKeys;
  int64_t n_heads = 0, d_head = 0;
  MatrixView<const float> x;  // [n, n_heads * d_head] of positions in a row, as they are coded
  // As x, of a model only: what the squared error of a number counts. Empty: of all the same.
  MatrixView<const float> weights;
  double weight(int64_t i, int64_t j) const { return weights.rows == 0 ? 1 : weights(i, j); }
};

// What attention makes of the positions of a page, as far as the newest queries tell.
struct KvAttention {
  const float* weights = nullptr;  // [kKeyBlock]: the largest that any gave each; null: not known
  double query_norm = 0;           // the largest square of their norms, scaled as scores are
  int64_t n_positions = 0;         // that they saw
};

class KvCodec {
 public:
  virtual ~KvCodec() = default;
  virtual std::string spec() const = 0;  // canonical text: "int(2, per=channel)"
  // Whether heads of d_head dimensions can be coded.
  virtual Status check(KvSide side, int64_t d_head) const = 0;
  virtual int64_t page_bytes(KvSide side, int64_t d_head) const = 0;
  virtual void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const = 0;
  // Points into the page and to what is written to scratch. The page at `next`, unless that is
  // null, is fetched ahead.
  virtual KvOperand read(KvSide side, int64_t d_head, const std::byte* page, const std::byte* next,
                         const KvScratch& scratch) const = 0;

  virtual KvTables tables() const { return KvTables::kNone; }
  // Of a text it does not fail.
  virtual Result<std::vector<float>> fit(const KvFitRows& /*rows*/) const {
    return std::vector<float>();
  }
  // The codec of one head of a layer, with tables of `fit` or of a file. One that has tables codes
  // nothing without.
  virtual Result<std::shared_ptr<const KvCodec>> with_tables(const KvFitRows& layer, int64_t head,
                                                             std::span<const float> tables) const {
    static_cast<void>(layer), static_cast<void>(head), static_cast<void>(tables);
    return error("kv: {} has no tables", spec());
  }
  // Pages that differ in size with what attention makes of their positions. Newest queries whose
  // weights are looked at, whenever a page is full; 0: pages have one size, and nothing is.
  virtual int64_t n_queries() const { return 0; }
  virtual std::vector<std::byte> encode_seen(KvSide /*side*/, int64_t /*d_head*/,
                                             const float* /*x*/,
                                             const KvAttention& /*seen*/) const {
    QUERN_CHECK(false);
    return {};
  }
  // The page with fewer bits where these are enough by now; empty: as it is.
  virtual std::vector<std::byte> narrowed(KvSide /*side*/, int64_t /*d_head*/,
                                          const std::byte* /*page*/,
                                          const KvAttention& /*seen*/) const {
    return {};
  }
  // Bytes of the page that begins here; fails where it does not fit.
  virtual Result<int64_t> size_of(int64_t /*d_head*/, std::span<const std::byte> bytes) const {
    return static_cast<int64_t>(bytes.size());
  }

  // Whether all that it reads are levels, and nothing is added to them: another may add to them.
  virtual bool is_bare() const { return true; }
};

// A codec that codes no page until with_tables has made another of it.
class KvUnfitted : public KvCodec {
 public:
  void encode(KvSide, int64_t, const float*, std::byte*) const override { QUERN_CHECK(false); }
  KvOperand read(KvSide, int64_t, const std::byte*, const std::byte*,
                 const KvScratch&) const override {
    QUERN_CHECK(false);
    return {};
  }
};

struct KvCodecInfo {
  std::string_view name;
  spec::ParamSpecs params;
  std::string_view summary;
  Result<std::unique_ptr<KvCodec>> (*make)(const spec::Params& params);
  std::span<const std::string_view> examples;  // texts that tests walk
};

// Whether heads of this size can be coded by codecs whose pages are blocks of levels.
Status check_coded_head(std::string_view spec, int64_t d_head);

std::span<const KvCodecInfo> kv_codecs();  // the rows of list.inc
Result<std::unique_ptr<KvCodec>> make_kv_codec(const spec::Call& call);

}  // namespace quern
