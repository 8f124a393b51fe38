// SPDX-License-Identifier: Apache-2.0
// What an evicting cache still knows of tokens that it dropped (LESS, arXiv 2402.09398): learned
// maps phi and psi of queries and keys to R features stand for their share of attention,
//   exp(scale q.k) ~ phi(q) . psi(k)   so that   sum exp(scale q.k) v ~ phi(q) H,
//   H = sum psi(k)^T v  [R, d_head],   z = sum psi(k)  [R],
// sums over what was dropped, whose size does not depend on how much that is. With q and k as
// attention reads them, no biases, and gelu by erf,
//   phi(q) = | gelu(gelu(q Q_in^T) Q_out^T) |
//   psi(k) = | kappa + (kappa K_mix^T) mix_scale |,
//   kappa  = | scale | gelu(gelu(k K_in^T) K_out^T).
// The paper's W are the transposes: rows are outputs here, as in linear layers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "kvcache/kv_tables.h"
#include "tensor/view.h"

namespace quern {

class KvFeatureMaps {
 public:
  // Of a layer, from the tables, with M hidden values and one map for every head or one for all:
  //   less.query_in   [n_heads | 1, M, d_head]     less.query_out  [n_heads | 1, R, M]
  //   less.key_in     [n_kv_heads | 1, M, d_head]  less.key_out    [n_kv_heads | 1, R, M]
  //   less.key_mix    [n_kv_heads | 1, R, R]
  //   less.key_scale, less.key_mix_scale  [n_kv_heads | 1, R]
  static Result<std::shared_ptr<const KvFeatureMaps>> load(const KvTableSet& tables, size_t layer,
                                                           const KvHeads& heads);

  int64_t n_features() const { return key_.n_features(); }  // R
  // features [x.rows, R] <- phi of queries of a head, psi of keys of a KV head; none is negative.
  void phi(int64_t head, MatrixView<const float> x, float* features) const;
  void psi(int64_t kv_head, MatrixView<const float> x, float* features) const;

 private:
  // gelu(gelu(x in^T) out^T); one for every head or one for all.
  struct Mlp {
    std::shared_ptr<const KvTable> in, out;
    int64_t n_maps() const { return in->shape[0]; }
    int64_t n_hidden() const { return in->shape[1]; }
    int64_t n_features() const { return out->shape[1]; }
    void run(int64_t head, MatrixView<const float> x, float* y) const;
  };
  static Result<Mlp> load_mlp(const KvTableSet& tables, size_t layer, std::string_view side,
                              int64_t n_heads, int64_t d_head);

  Mlp query_, key_;
  std::shared_ptr<const KvTable> scale_, mix_, mix_scale_;
};

// H and z of the KV heads of one layer, in floats: sums over long texts.
class KvAbsorbed {
 public:
  KvAbsorbed() = default;
  KvAbsorbed(int64_t n_kv_heads, int64_t n_features, int64_t d_head);

  bool is_empty(int64_t kv_head) const;  // nothing that any query would read
  void add(int64_t kv_head, const float* psi, const float* value);
  // out [d_head], what attention made of the tokens that are left and `lse` the log of their sum of
  // exponentials, becomes what it makes of them and the others. phi . z = 0 leaves it as it is.
  void merge(int64_t kv_head, const float* phi, float lse, float* out) const;

  std::vector<float>& values() { return values_; }    // H, [n_kv_heads, R, d_head]
  std::vector<float>& weights() { return weights_; }  // z, [n_kv_heads, R]
  const std::vector<float>& values() const { return values_; }
  const std::vector<float>& weights() const { return weights_; }
  size_t n_bytes() const { return (values_.capacity() + weights_.capacity()) * sizeof(float); }

 private:
  int64_t n_features_ = 0, d_head_ = 0;
  std::vector<float> values_, weights_;
};

}  // namespace quern
