// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "codecs/measure.h"
#include "transforms/layer_view_testing.h"

namespace quern {
namespace {

using testing::FakeLayer;
using testing::fitted;
using testing::scales_at;

constexpr Site kAll[] = {Site::kAttnIn, Site::kHeads, Site::kMlpIn, Site::kFfn};

// sum |X (W - Q(W s) / s)^T|^2 over what reads the site and is rounded; plain loops.
double error_of(const FakeLayer& layer, Site site, const std::string& codec_text,
                const std::vector<double>& s) {
  const auto codec = *make_codec(codec_text);
  const Matrix<float>& x = layer.statistics(site)->rows;
  double total = 0;
  for (const Reader& reader : readers(layer.desc(), site)) {
    if (reader.role == Role::kRouter) continue;
    const Matrix<float> w = *layer.weight(reader.role, reader.expert);
    Matrix<float> scaled = w, w_hat(w.rows(), w.cols());
    for (int64_t i = 0; i < w.rows(); ++i) {
      for (int64_t j = 0; j < w.cols(); ++j) {
        scaled(i, j) *= static_cast<float>(s[static_cast<size_t>(j)]);
      }
    }
    CodedMatrix codes = *CodedMatrix::create(*codec, w.rows(), w.cols());
    code_to_nearest(*codec, scaled.view(), codes.mutable_view(), w_hat.view());
    for (int64_t t = 0; t < x.rows(); ++t) {
      for (int64_t i = 0; i < w.rows(); ++i) {
        double sum = 0;
        for (int64_t j = 0; j < w.cols(); ++j) {
          sum += x(t, j) * (w(i, j) - w_hat(i, j) / s[static_cast<size_t>(j)]);
        }
        total += sum * sum;
      }
    }
  }
  return total;
}

std::vector<double> of_exponent(std::vector<double> size, double r) {
  for (double& m : size) m = std::max(std::pow(m, r), 1e-4);
  const auto [least, most] = std::minmax_element(size.begin(), size.end());
  const double centre = std::sqrt(*least * *most);
  for (double& s : size) s /= centre;
  return size;
}

TEST(Awq, FindsTheBestExponentAndIsNeverWorseThanRounding) {
  for (const int n_experts : {0, 2}) {
    const FakeLayer layer(n_experts, 4);
    for (const char* codec : {"int(3, group=16, sym=false)", "int(4, group=32, sym=false)"}) {
      const BasisChange basis = fitted(layer, fmt::format("awq({}, points=10)", codec));
      int n_scaled = 0;
      for (const Site site : kAll) {
        const std::vector<double>& size = layer.statistics(site)->mean_abs;
        const double rtn = error_of(layer, site, codec, std::vector<double>(size.size(), 1.0));
        double best = rtn;
        for (int i = 1; i < 10; ++i) {
          best = std::min(best, error_of(layer, site, codec, of_exponent(size, i / 10.0)));
        }
        std::vector<double> found(size.size(), 1.0);
        if (!basis.at(site, 0).empty()) {
          ++n_scaled;
          const std::vector<float> scale = scales_at(basis, site);
          for (size_t j = 0; j < found.size(); ++j) found[j] = 1 / double{scale[j]};
        }
        const double error = error_of(layer, site, codec, found);
        EXPECT_LE(error, rtn * 1.0001) << site_name(site);
        EXPECT_NEAR(error, best, 1e-3 * best) << site_name(site);
      }
      EXPECT_GT(n_scaled, 0) << "channels of very different size";
    }
  }
}

TEST(Awq, WithOnePointItIsRoundingAsItIs) {
  const FakeLayer layer(0, 4);
  const BasisChange basis = fitted(layer, "awq(int(3, group=16), points=1)");
  for (const Site site : kAll) EXPECT_TRUE(basis.at(site, 0).empty());
}

TEST(Awq, FactorsAreCentredAndFoldIntoSharedValues) {
  const FakeLayer layer(0, 2);  // two query heads to a KV head
  const BasisChange basis = fitted(layer, "awq(int(3, group=16), sites=heads)");
  const std::vector<float> scale = scales_at(basis, Site::kHeads);
  const auto [least, most] = std::minmax_element(scale.begin(), scale.end());
  EXPECT_NEAR(*least * *most, 1, 1e-6);
  EXPECT_LT(*least, *most);
  for (size_t j = 0; j < 8; ++j) {
    EXPECT_EQ(scale[j], scale[8 + j]);
    EXPECT_EQ(scale[16 + j], scale[24 + j]);
  }
}

TEST(Awq, TakesAnyCodecAndRefusesWrongParameters) {
  const auto call = spec::parse_call("awq(e8p)");
  const TransformInfo* info = find_transform("awq");
  EXPECT_TRUE(info->make(*spec::Params::bind(*call, info->params)).has_value());
  const auto bad = spec::parse_call("awq(int(9))");
  EXPECT_FALSE(info->make(*spec::Params::bind(*bad, info->params)).has_value());
}

}  // namespace
}  // namespace quern
