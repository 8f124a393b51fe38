// SPDX-License-Identifier: Apache-2.0
// Where slice cuts, by moments that are given to it.
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "linalg/decompose.h"
#include "transforms/transform.h"

namespace quern {
namespace {

constexpr int64_t kWidth = 24;

ModelDesc small_model() {
  ModelDesc model;
  model.d_model = kWidth;
  model.n_vocab = 50;
  LayerDesc layer;
  layer.attention.n_heads = 4;
  layer.attention.n_kv_heads = 2;
  layer.attention.d_head = 6;
  layer.mlp.d_ffn = 40;
  layer.attn_norm.kind = layer.mlp_norm.kind = NormKind::kRms;
  model.layers = {layer, layer};
  return model;
}

// X [n, kWidth] with falling variances in a random basis.
Matrix<double> stream(int place) {
  Random random(static_cast<uint64_t>(place) + 1);
  const Matrix<double> turn = random_orthogonal(kWidth, random);
  Matrix<double> x(100, kWidth);
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < kWidth; ++j) x(i, j) = random.gaussian() * std::pow(0.8, double(j));
  }
  return product(std::as_const(x).view(), turn.view());
}

class FakeLayer final : public LayerView {
 public:
  FakeLayer(const ModelDesc& model, int layer) : model_(model), layer_(layer) {}
  const ModelDesc& model() const override { return model_; }
  int layer() const override { return layer_; }
  const SiteStatistics* statistics(Site) const override { return nullptr; }
  Result<Matrix<float>> weight(Role, int) const override { return error("not asked for"); }
  Result<Matrix<double>> stream_moment(int place) const override {
    const Matrix<double> x = stream(place);
    Matrix<double> moment(kWidth, kWidth);
    for (int64_t r = 0; r < x.rows(); ++r) {
      for (int64_t i = 0; i < kWidth; ++i) {
        for (int64_t j = 0; j < kWidth; ++j) moment(i, j) += x(r, i) * x(r, j) / double(x.rows());
      }
    }
    return moment;
  }

 private:
  const ModelDesc& model_;
  int layer_;
};

std::unique_ptr<Transform> make_slice(const std::string& text) {
  const auto call = spec::parse_call(text);
  const TransformInfo* info = find_transform("slice");
  const auto params = spec::Params::bind(*call, info->params);
  EXPECT_TRUE(params.has_value()) << text;
  return *info->make(*params);
}

BasisChange fitted(const std::string& text, const ModelDesc& model) {
  BasisChange basis;
  std::vector<std::string> notes;
  const auto slice = make_slice(text);
  EXPECT_TRUE(slice->plan(model, 1, basis, notes));
  for (int layer = -1; layer < 2; ++layer) {
    EXPECT_TRUE(slice->fit(FakeLayer(model, layer), 1, basis, notes));
  }
  return basis;
}

// Share of |X|^2 that X Q Q^T keeps.
double kept(const Matrix<double>& x, const Matrix<double>& q) {
  const Matrix<double> y = product(x.view(), q.view());
  double left = 0, all = 0;
  for (int64_t i = 0; i < y.rows() * y.cols(); ++i) left += y.data()[i] * y.data()[i];
  for (int64_t i = 0; i < x.rows() * x.cols(); ++i) all += x.data()[i] * x.data()[i];
  return left / all;
}

TEST(SliceFit, TheEnergyKeptIsThatOfTheLargestEigenvalues) {
  const ModelDesc model = small_model();
  for (const char* text : {"slice(0.3)", "slice(0.3, final=pca)"}) {
    const BasisChange basis = fitted(text, model);
    for (int place = 0; place < 4; ++place) {
      const Matrix<double>* q = basis.slice(place);
      ASSERT_NE(q, nullptr);
      ASSERT_EQ(q->cols(), 16);  // 16.8 rounded down to a multiple of 8
      for (int64_t a = 0; a < q->cols(); ++a) {
        for (int64_t b = 0; b < q->cols(); ++b) {
          double dot = 0;
          for (int64_t i = 0; i < q->rows(); ++i) dot += (*q)(i, a) * (*q)(i, b);
          EXPECT_NEAR(dot, a == b, 1e-12);
        }
      }
      const auto moment = FakeLayer(model, 0).stream_moment(place);
      const auto eigen = eigen_symmetric(moment->view());
      double top = 0, all = 0;
      for (size_t i = 0; i < eigen->values.size(); ++i) {
        all += eigen->values[i];
        if (i < 16) top += eigen->values[i];
      }
      EXPECT_NEAR(kept(stream(place), *q), top / all, 1e-12) << text;
    }
    EXPECT_EQ(basis.slice(4), nullptr);  // the head
  }
}

TEST(SliceFit, MoreDirectionsKeepMoreAndRandomOnesLess) {
  const ModelDesc model = small_model();
  double last = 1.1;
  for (const char* text : {"slice(0, multiple=1)", "slice(0.1, multiple=1)",
                           "slice(0.3, multiple=1)", "slice(0.6, multiple=1)"}) {
    const double share = kept(stream(1), *fitted(text, model).slice(1));
    EXPECT_LT(share, last) << text;
    last = share;
  }
  EXPECT_GT(kept(stream(1), *fitted("slice(0.3)", model).slice(1)),
            kept(stream(1), *fitted("slice(0.3, directions=random)", model).slice(1)) + 0.1);
}

TEST(SliceFit, SaysThatAModelGrowsAndMeetsATargetSize) {
  ModelDesc model = small_model();
  std::vector<std::string> notes;
  BasisChange basis;
  ASSERT_TRUE(make_slice("slice(0.05, multiple=1)")->plan(model, 1, basis, notes));
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("the model grows"), std::string::npos) << notes[0];
  notes.clear();
  BasisChange half;
  ASSERT_TRUE(make_slice("slice(0.5, multiple=1)")->plan(model, 1, half, notes));
  EXPECT_EQ(notes[0].find("the model grows"), std::string::npos) << notes[0];
  EXPECT_EQ(half.form().widths[0], 12);
  // 2 bytes a parameter; the widest stream that fits is taken.
  BasisChange sized;
  ASSERT_TRUE(make_slice("slice(megabytes=0.015, multiple=1)")->plan(model, 1, sized, notes));
  const int64_t width = sized.form().widths[0];
  const auto weights = [&](int64_t d) {
    const int64_t layers = 2 * (d * (24 + 24) + d * 24 + 3 * 40 * d + 2 * d * d);
    return layers + (24 - d) * (40 + d) + 50 * d + 50 * 24;
  };
  EXPECT_LE(2 * weights(width), 15000);
  EXPECT_GT(2 * weights(width + 1), 15000);
  BasisChange none;
  EXPECT_FALSE(make_slice("slice(megabytes=0.001)")->plan(model, 1, none, notes));
}

TEST(SliceFit, DeclinesWhatItCannotCut) {
  std::vector<std::string> notes;
  ModelDesc post = small_model();
  post.layers[1].mlp_post_norm.kind = NormKind::kRms;
  BasisChange basis, turned;
  EXPECT_FALSE(make_slice("slice")->plan(post, 1, basis, notes));
  turned.add(Site::kResidual, make_signs(kWidth, 1, 1));
  EXPECT_FALSE(make_slice("slice")->plan(small_model(), 1, turned, notes));
  BasisChange twice = fitted("slice", small_model());
  EXPECT_FALSE(make_slice("slice")->plan(small_model(), 1, twice, notes));
}

}  // namespace
}  // namespace quern
