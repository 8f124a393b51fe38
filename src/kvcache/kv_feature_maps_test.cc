// SPDX-License-Identifier: Apache-2.0
// Maps of features with parameters set by hand, and states whose sums are known. In a model:
// tests/e2e/less_test.cc.
#include "kvcache/kv_feature_maps.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/attention.h"
#include "kvcache/kv_cache.h"
#include "kvcache/kv_testing.h"

namespace quern {
namespace {

double gelu(double x) { return x * (1 + std::erf(x / std::sqrt(2.0))) / 2; }

// gelu(x) = x to the bit from 6 on, and 0 from -6 down, but for less than 1e-8.
KvTableSet straight_tables() {
  KvTableSet tables;
  tables.put(0, "less.query_in", {1, 1, 2}, {2, 0});
  tables.put(0, "less.query_out", {1, 1, 1}, {3});
  tables.put(0, "less.key_in", {1, 1, 2}, {0, 4});
  tables.put(0, "less.key_out", {1, 1, 1}, {1});
  tables.put(0, "less.key_mix", {1, 1, 1}, {5});
  tables.put(0, "less.key_scale", {1, 1}, {-.5});
  tables.put(0, "less.key_mix_scale", {1, 1}, {.25});
  return tables;
}

TEST(KvFeatureMaps, FarFromZeroTheyAreLinear) {
  const auto maps = *KvFeatureMaps::load(straight_tables(), 0, {2, 1, 2});
  Matrix<float> x(2, 2);
  x(0, 0) = 8;  // (8, 2), (4, 16)
  x(0, 1) = 2;
  x(1, 0) = 4;
  x(1, 1) = 16;
  float features[2];
  maps->phi(1, x.view(), features);
  EXPECT_EQ(features[0], 8 * 2 * 3);
  EXPECT_EQ(features[1], 4 * 2 * 3);
  maps->psi(0, x.view(), features);  // kappa = 4 x_1 / 2, psi = kappa + 5 kappa / 4
  EXPECT_EQ(features[0], 2 * 2 * 2.25);
  EXPECT_EQ(features[1], 16 * 2 * 2.25);
}

TEST(KvFeatureMaps, AreTheirFormula) {
  const KvHeads heads{4, 2, 6};
  const KvTableSet tables = untrained_tables(heads);
  const auto maps = *KvFeatureMaps::load(tables, 0, heads);
  const int64_t n = maps->n_features();
  const auto table = [&](const char* name, int64_t map, int64_t row, int64_t col) {
    const KvTable& t = **tables.find(0, name, 3);
    return static_cast<double>(
        t.values[static_cast<size_t>((map * t.shape[1] + row) * t.shape[2] + col)]);
  };
  const auto mlp = [&](const char* in, const char* out, int64_t map, const float* x) {
    const int64_t n_hidden = (*tables.find(0, in, 3))->shape[1];
    std::vector<double> y(static_cast<size_t>(n));
    for (int64_t j = 0; j < n_hidden; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < heads.d_head; ++c) sum += table(in, map, j, c) * x[c];
      for (int64_t r = 0; r < n; ++r)
        y[static_cast<size_t>(r)] += table(out, map, r, j) * gelu(sum);
    }
    for (double& value : y) value = gelu(value);
    return y;
  };
  const Matrix<float> x = gaussian_rows(9, heads.d_head, 5);
  Matrix<float> phi(9, n), psi(9, n), one(1, n);
  maps->phi(3, x.view(), phi.data());
  maps->psi(1, x.view(), psi.data());
  const KvTable &scale = **tables.find(0, "less.key_scale", 2),
                &mix_scale = **tables.find(0, "less.key_mix_scale", 2);
  for (int64_t i = 0; i < 9; ++i) {
    const std::vector<double> q = mlp("less.query_in", "less.query_out", 0, x.row(i));
    std::vector<double> kappa = mlp("less.key_in", "less.key_out", 1, x.row(i));
    for (int64_t r = 0; r < n; ++r) {
      kappa[static_cast<size_t>(r)] *= std::fabs(scale.values[static_cast<size_t>(n + r)]);
    }
    for (int64_t r = 0; r < n; ++r) {
      double mixed = 0;
      for (int64_t c = 0; c < n; ++c) {
        mixed += table("less.key_mix", 1, r, c) * kappa[static_cast<size_t>(c)];
      }
      const double k =
          kappa[static_cast<size_t>(r)] + mixed * mix_scale.values[static_cast<size_t>(n + r)];
      EXPECT_NEAR(phi(i, r), std::fabs(q[static_cast<size_t>(r)]), 1e-4);
      EXPECT_NEAR(psi(i, r), std::fabs(k), 1e-4);
    }
    maps->psi(1, x.view().row_range(i, 1), one.data());  // rows do not depend on their company
    for (int64_t r = 0; r < n; ++r) EXPECT_EQ(one(0, r), psi(i, r));
  }
}

TEST(KvFeatureMaps, TablesOfOtherShapesAreRefused) {
  const KvHeads heads{4, 2, 6};
  const auto problem = [&](const char* name, Shape shape) {
    KvTableSet tables = untrained_tables(heads);
    std::vector<float> values(static_cast<size_t>(*element_count(shape)));
    tables.put(0, name, std::move(shape), std::move(values));
    const auto maps = KvFeatureMaps::load(tables, 0, heads);
    return maps ? std::string() : maps.error().message;
  };
  EXPECT_EQ(problem("unknown", {1}), "");
  EXPECT_NE(problem("less.query_in", {5, 6}).find("expected 3 axes"), std::string::npos);
  EXPECT_NE(problem("less.query_in", {3, 5, 6}).find("1 or 4 maps"), std::string::npos);
  EXPECT_NE(problem("less.query_in", {1, 5, 7}).find("expected [1, 5, 6]"), std::string::npos);
  EXPECT_NE(problem("less.query_out", {4, 3, 5}).find("expected [1, 3, 5]"), std::string::npos);
  EXPECT_NE(problem("less.query_out", {1, 4, 5}).find("4 features of queries, 3 of keys"),
            std::string::npos);
  EXPECT_NE(problem("less.key_out", {2, 0, 5}).find("nothing"), std::string::npos);
  EXPECT_NE(problem("less.key_mix", {2, 3, 2}).find("expected [2, 3, 3]"), std::string::npos);
  EXPECT_NE(problem("less.key_scale", {1, 3}).find("expected [2, 3]"), std::string::npos);
  EXPECT_NE(problem("less.key_mix_scale", {2, 4}).find("expected [2, 3]"), std::string::npos);
  const auto other_layer = KvFeatureMaps::load(untrained_tables(heads), 1, heads);
  ASSERT_FALSE(other_layer);
  EXPECT_NE(other_layer.error().message.find("layers.1.less.query_in"), std::string::npos);
}

// Keys are all the same, so that phi = e^s, psi = 1 is exact: with tokens dropped attention is what
// it was over all.
TEST(KvAbsorbed, AnExactMapLosesNothing) {
  constexpr int64_t kDims = 8, kTokens = 50, kKept = 20;
  const Matrix<float> q = gaussian_rows(1, kDims, 1), key = gaussian_rows(1, kDims, 2),
                      values = gaussian_rows(kTokens, kDims, 3);
  AlignedVector<float> keys(static_cast<size_t>(kDims * kKeyBlock));
  for (int64_t c = 0; c < kDims; ++c) {
    for (int64_t p = 0; p < kKeyBlock; ++p) {
      keys[static_cast<size_t>(c * kKeyBlock + p)] = key(0, c);
    }
  }
  const auto attend_first = [&](int64_t n, float* out, float* lse) {
    const StoredBlocks blocks(keys.data(), values.data(), DType::kF32, kDims);
    const int64_t first = 0, last = n;
    const KvSegment segment{&blocks, &first, &last};
    AttendArgs args;
    args.q = q.data();
    args.ld_q = args.ld_out = args.d_head = kDims;
    args.n_q = 1;
    args.segments = {&segment, 1};
    args.n_ctx = n;
    args.out = out;
    args.lse = lse;
    attend(args);
  };
  float all[kDims], out[kDims], lse = 0;
  attend_first(kTokens, all, &lse);
  const float phi = std::exp(lse) / kTokens, psi = 1;
  attend_first(kKept, out, &lse);
  KvAbsorbed state(1, 1, kDims);
  EXPECT_TRUE(state.is_empty(0));
  for (int64_t i = kKept; i < kTokens; ++i) state.add(0, &psi, values.row(i));
  EXPECT_FALSE(state.is_empty(0));
  EXPECT_EQ(state.weights()[0], kTokens - kKept);
  state.merge(0, &phi, lse, out);
  for (int64_t c = 0; c < kDims; ++c) EXPECT_NEAR(out[c], all[c], 1e-5);
}

// What the logs do, by the sums themselves, in double.
TEST(KvAbsorbed, IsTheQuotientOfSums) {
  constexpr int64_t kDims = 5, kFeatures = 4;
  for (const float lse : {-80.0f, -1.0f, 0.0f, 3.0f, 80.0f}) {
    const Matrix<float> values = gaussian_rows(7, kDims, 3), out = gaussian_rows(1, kDims, 4);
    Matrix<float> psi = gaussian_rows(7, kFeatures, 5), phi = gaussian_rows(1, kFeatures, 6);
    for (Matrix<float>* x : {&psi, &phi}) {
      for (int64_t i = 0; i < x->rows() * x->cols(); ++i) x->data()[i] = std::fabs(x->data()[i]);
    }
    KvAbsorbed state(2, kFeatures, kDims);
    std::vector<double> sums(kDims);
    double total = std::exp(static_cast<double>(lse));
    for (int64_t c = 0; c < kDims; ++c) sums[static_cast<size_t>(c)] = total * out(0, c);
    for (int64_t i = 0; i < 7; ++i) {
      state.add(1, psi.row(i), values.row(i));
      double weight = 0;
      for (int64_t r = 0; r < kFeatures; ++r) {
        weight += static_cast<double>(phi(0, r)) * psi(i, r);
      }
      total += weight;
      for (int64_t c = 0; c < kDims; ++c) sums[static_cast<size_t>(c)] += weight * values(i, c);
    }
    Matrix<float> merged = out, other = out;
    state.merge(1, phi.row(0), lse, merged.row(0));
    state.merge(0, phi.row(0), lse, other.row(0));
    EXPECT_EQ(other, out);  // nothing was added to head 0
    for (int64_t c = 0; c < kDims; ++c) {
      EXPECT_NEAR(merged(0, c), sums[static_cast<size_t>(c)] / total, 1e-5) << lse;
    }
  }
}

}  // namespace
}  // namespace quern
