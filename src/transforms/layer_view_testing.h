// SPDX-License-Identifier: Apache-2.0
// A layer of random weights and inputs, for tests of fitted transforms.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <utility>

#include "base/random.h"
#include "transforms/readers.h"
#include "transforms/transform.h"

namespace quern::testing {

class FakeLayer final : public LayerView {
 public:
  // `n_experts` 0: a dense MLP. Four heads; their channels differ in size by up to 50.
  FakeLayer(int n_experts, int64_t n_kv_heads) {
    model_.d_model = 32;
    LayerDesc layer;
    layer.attention.n_heads = 4;
    layer.attention.n_kv_heads = n_kv_heads;
    layer.attention.d_head = 8;
    layer.mlp.d_ffn = 48;
    layer.mlp.n_experts = n_experts;
    layer.mlp.top_k = 1;
    layer.attn_norm.kind = layer.mlp_norm.kind = NormKind::kRms;
    model_.layers.push_back(layer);
    Random random(7);
    for (const Site site : {Site::kAttnIn, Site::kHeads, Site::kMlpIn, Site::kFfn}) {
      statistics_[site] = statistics_of(site == Site::kFfn ? 48 : 32, random);
      for (const Reader& reader : readers(layer, site)) {
        const int64_t n_out = reader.role == Role::kRouter ? n_experts : 40;
        weights_[{reader.role, reader.expert}] =
            gaussian(n_out, site == Site::kFfn ? 48 : 32, random);
      }
    }
    for (const Role role : {Role::kGate, Role::kUp}) {
      for (int e = n_experts > 0 ? 0 : -1; e < n_experts; ++e) {
        weights_[{role, e}] = gaussian(48, 32, random);
      }
    }
  }

  const ModelDesc& model() const override { return model_; }
  int layer() const override { return 0; }
  const SiteStatistics* statistics(Site site) const override {
    const auto found = statistics_.find(site);
    return found == statistics_.end() ? nullptr : &found->second;
  }
  Result<Matrix<float>> weight(Role role, int expert) const override {
    return weights_.at({role, expert});
  }

  const LayerDesc& desc() const { return model_.layers[0]; }
  SiteStatistics& edit_statistics(Site site) { return statistics_.at(site); }
  void drop_statistics(Site site) { statistics_.erase(site); }
  Matrix<float>& edit_weight(Role role, int expert = -1) { return weights_.at({role, expert}); }

 private:
  static Matrix<float> gaussian(int64_t rows, int64_t cols, Random& random) {
    Matrix<float> w(rows, cols);
    for (int64_t i = 0; i < rows * cols; ++i) w.data()[i] = static_cast<float>(random.gaussian());
    return w;
  }

  static SiteStatistics statistics_of(int64_t n, Random& random) {
    constexpr int64_t kRows = 200;
    SiteStatistics s;
    s.n_rows = kRows;
    s.rows = gaussian(kRows, n, random);
    s.abs_max.resize(static_cast<size_t>(n));
    s.mean_abs.resize(static_cast<size_t>(n));
    s.mean_square.resize(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j) {
      const auto size = static_cast<float>(j % 9 == 0 ? 50 : 1 + j % 4);
      const auto at = static_cast<size_t>(j);
      for (int64_t i = 0; i < kRows; ++i) {
        s.rows(i, j) *= size;
        const float x = std::abs(s.rows(i, j));
        s.abs_max[at] = std::max(s.abs_max[at], x);
        s.mean_abs[at] += x / double{kRows};
        s.mean_square[at] += double{x} * x / double{kRows};
      }
    }
    return s;
  }

  ModelDesc model_;
  std::map<Site, SiteStatistics> statistics_;
  std::map<std::pair<Role, int>, Matrix<float>> weights_;
};

// What a transform of this text makes of the layer.
inline BasisChange fitted(const FakeLayer& layer, const std::string& text) {
  BasisChange basis;
  std::vector<std::string> notes;
  const auto call = spec::parse_call(text);
  EXPECT_TRUE(call.has_value()) << text;
  const TransformInfo* info = find_transform(call->name);
  EXPECT_NE(info, nullptr);
  const auto transform = info->make(*spec::Params::bind(*call, info->params));
  EXPECT_TRUE(transform.has_value()) << (transform ? "" : transform.error().message);
  EXPECT_TRUE((*transform)->plan(layer.model(), 0, basis, notes));
  const Status done = (*transform)->fit(layer, 0, basis, notes);
  EXPECT_TRUE(done.has_value()) << (done ? "" : done.error().message);
  return basis;
}

// What the operators of a site in the layer, all diagonal, multiply each channel by.
inline std::vector<float> scales_at(const BasisChange& basis, Site site) {
  const Chain& chain = basis.at(site, 0);
  EXPECT_EQ(chain.operators().size(), 1u);
  const OperatorPtr& op = chain.operators()[0];
  EXPECT_EQ(op->kind(), OperatorKind::kDiagonal);
  std::vector<float> scale(static_cast<size_t>(op->size()), 1.0f);
  op->apply(scale.data(), op->size());
  return scale;
}

}  // namespace quern::testing
