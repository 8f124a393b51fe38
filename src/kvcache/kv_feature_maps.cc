// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_feature_maps.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kernels.h"
#include "kernels/vec_math.h"

namespace quern {
namespace {

// A table of `rank` axes, the first one map for each of n_heads or one for all.
Result<std::shared_ptr<const KvTable>> table_of_heads(const KvTableSet& tables, size_t layer,
                                                      const std::string& name, size_t rank,
                                                      int64_t n_heads) {
  QUERN_ASSIGN(auto table, tables.find(layer, name, rank));
  const Shape& shape = table->shape;
  if (shape[0] != 1 && shape[0] != n_heads) {
    return error("{} of layer {} is {}: expected 1 or {} maps", name, layer, to_string(shape),
                 n_heads);
  }
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
    return error("{} of layer {} is {}: nothing", name, layer, to_string(shape));
  }
  return table;
}

Status check_shape(const std::string& name, size_t layer, const KvTable& table,
                   const Shape& expected) {
  if (table.shape == expected) return {};
  return error("{} of layer {} is {}, expected {}", name, layer, to_string(table.shape),
               to_string(expected));
}

}  // namespace

Result<KvFeatureMaps::Mlp> KvFeatureMaps::load_mlp(const KvTableSet& tables, size_t layer,
                                                   std::string_view side, int64_t n_heads,
                                                   int64_t d_head) {
  const std::string in_name = fmt::format("less.{}_in", side);
  const std::string out_name = fmt::format("less.{}_out", side);
  QUERN_ASSIGN(auto in, table_of_heads(tables, layer, in_name, 3, n_heads));
  QUERN_ASSIGN(auto out, table_of_heads(tables, layer, out_name, 3, n_heads));
  const int64_t n_maps = in->shape[0], n_hidden = in->shape[1];
  QUERN_TRY(check_shape(in_name, layer, *in, {n_maps, n_hidden, d_head}));
  QUERN_TRY(check_shape(out_name, layer, *out, {n_maps, out->shape[1], n_hidden}));
  return Mlp{std::move(in), std::move(out)};
}

Result<std::shared_ptr<const KvFeatureMaps>> KvFeatureMaps::load(const KvTableSet& tables,
                                                                 size_t layer,
                                                                 const KvHeads& heads) {
  auto maps = std::make_shared<KvFeatureMaps>();
  QUERN_ASSIGN(maps->query_, load_mlp(tables, layer, "query", heads.n_heads, heads.d_head));
  QUERN_ASSIGN(maps->key_, load_mlp(tables, layer, "key", heads.n_kv_heads, heads.d_head));
  const int64_t n = maps->n_features();
  if (maps->query_.n_features() != n) {
    return error("less of layer {}: {} features of queries, {} of keys", layer,
                 maps->query_.n_features(), n);
  }
  QUERN_ASSIGN(maps->mix_, table_of_heads(tables, layer, "less.key_mix", 3, heads.n_kv_heads));
  const int64_t n_maps = maps->mix_->shape[0];
  QUERN_TRY(check_shape("less.key_mix", layer, *maps->mix_, {n_maps, n, n}));
  QUERN_ASSIGN(maps->scale_, tables.find(layer, "less.key_scale", 2));
  QUERN_TRY(check_shape("less.key_scale", layer, *maps->scale_, {n_maps, n}));
  QUERN_ASSIGN(maps->mix_scale_, tables.find(layer, "less.key_mix_scale", 2));
  QUERN_TRY(check_shape("less.key_mix_scale", layer, *maps->mix_scale_, {n_maps, n}));
  return maps;
}

void KvFeatureMaps::Mlp::run(int64_t head, MatrixView<const float> x, float* y) const {
  const KernelTable& table = kernels();
  const int64_t map = n_maps() == 1 ? 0 : head, m = n_hidden(), r = n_features();
  std::vector<float> hidden(static_cast<size_t>(x.rows * m));
  table.dot_tile(x.data, x.stride, x.rows, in->values.data() + map * m * x.cols, x.cols, m, x.cols,
                 hidden.data(), m);
  table.activate(Activation::kGelu, x.rows * m, hidden.data());
  table.dot_tile(hidden.data(), m, x.rows, out->values.data() + map * r * m, m, r, m, y, r);
  table.activate(Activation::kGelu, x.rows * r, y);
}

void KvFeatureMaps::phi(int64_t head, MatrixView<const float> x, float* features) const {
  query_.run(head, x, features);
  for (int64_t i = 0; i < x.rows * n_features(); ++i) features[i] = std::fabs(features[i]);
}

void KvFeatureMaps::psi(int64_t kv_head, MatrixView<const float> x, float* features) const {
  const int64_t n = n_features(), map = mix_->shape[0] == 1 ? 0 : kv_head;
  key_.run(kv_head, x, features);
  const float *scale = scale_->values.data() + map * n, *mix = mix_->values.data() + map * n * n;
  const float* mix_scale = mix_scale_->values.data() + map * n;
  std::vector<float> mixed(static_cast<size_t>(n));
  for (int64_t i = 0; i < x.rows; ++i) {
    float* kappa = features + i * n;
    for (int64_t r = 0; r < n; ++r) kappa[r] *= std::fabs(scale[r]);
    kernels().dot_tile(kappa, n, 1, mix, n, n, n, mixed.data(), n);
    kernels().multiply(mixed.data(), mix_scale, n, mixed.data());
    kernels().add(mixed.data(), n, kappa);
    for (int64_t r = 0; r < n; ++r) kappa[r] = std::fabs(kappa[r]);
  }
}

KvAbsorbed::KvAbsorbed(int64_t n_kv_heads, int64_t n_features, int64_t d_head)
    : n_features_(n_features),
      d_head_(d_head),
      values_(static_cast<size_t>(n_kv_heads * n_features * d_head)),
      weights_(static_cast<size_t>(n_kv_heads * n_features)) {}

bool KvAbsorbed::is_empty(int64_t kv_head) const {
  const auto first = weights_.begin() + kv_head * n_features_;
  return std::all_of(first, first + n_features_, [](float z) { return z == 0; });
}

void KvAbsorbed::add(int64_t kv_head, const float* psi, const float* value) {
  kernels().add(psi, n_features_, weights_.data() + kv_head * n_features_);
  for (int64_t r = 0; r < n_features_; ++r) {
    kernels().axpy(psi[r], value, d_head_, values_.data() + (kv_head * n_features_ + r) * d_head_);
  }
}

void KvAbsorbed::merge(int64_t kv_head, const float* phi, float lse, float* out) const {
  const float* z = weights_.data() + kv_head * n_features_;
  const float sum = kernels().dot(phi, z, n_features_);
  // Below the normal numbers there is nothing to speak of; infinities and numbers that are none
  // come from parameters that no training gives.
  if (!(sum >= std::numeric_limits<float>::min() && sum <= std::numeric_limits<float>::max())) {
    return;
  }
  float shares[] = {lse, log_of(sum)};
  kernels().softmax(1, 2, shares, nullptr);
  kernels().scale(shares[0], d_head_, out);
  for (int64_t r = 0; r < n_features_; ++r) {
    const float share = phi[r] / sum * shares[1];
    kernels().axpy(share, values_.data() + (kv_head * n_features_ + r) * d_head_, d_head_, out);
  }
}

}  // namespace quern
