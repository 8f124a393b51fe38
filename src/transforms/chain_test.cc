// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "base/check.h"
#include "base/random.h"
#include "tensor/matrix.h"
#include "transforms/basis.h"

namespace quern {
namespace {

template <class T>
AlignedVector<T> gaussian(int64_t n) {
  AlignedVector<T> x(static_cast<size_t>(n));
  Random random(1);
  for (T& v : x) v = static_cast<T>(random.gaussian());
  return x;
}

Chain rht(int64_t signs, int64_t size) {
  Chain chain;
  chain.add(make_signs(signs, 3, 0));
  auto hadamard = make_hadamard(size);
  QUERN_CHECK(hadamard.has_value());
  chain.add(*std::move(hadamard));
  return chain;
}

template <class T>
void expect_the_sequence(const Chain& chain, int64_t count) {
  const AlignedVector<T> x = gaussian<T>(count);
  AlignedVector<T> got = x, want = x;
  chain.apply(got.data(), count);
  for (const OperatorPtr& op : chain.operators()) op->apply(want.data(), count);
  EXPECT_EQ(got, want);
  if constexpr (sizeof(T) == sizeof(float)) {
    AlignedVector<float> elsewhere(x.size());
    chain.apply_to(x.data(), count, elsewhere.data());
    EXPECT_EQ(elsewhere, want);
  }
  chain.apply_inverse(got.data(), count);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(got[i], x[i], sizeof(T) == 8 ? 1e-12 : 1e-5);
}

TEST(Chain, SignsThatJoinAHadamardKeepTheBitsOfBoth) {
  // One matrix for all signs, several for one period of them, several periods, K > 1.
  for (const auto& [signs, size] :
       {std::pair{64, 64}, {96, 32}, {12, 4}, {768, 768}, {1376, 1376}, {8, 8}}) {
    const Chain chain = rht(signs, size);
    EXPECT_EQ(chain.operators().size(), 2u);
    for (int64_t periods : {1, 3}) {
      expect_the_sequence<float>(chain, signs * periods);
      expect_the_sequence<double>(chain, signs * periods);
    }
  }
}

TEST(Chain, PartsOfAChainDoTheirPartAlone) {
  Chain chain = rht(64, 64);
  chain.add(make_signs(64, 4, 0));
  const AlignedVector<float> x = gaussian<float>(64);
  AlignedVector<float> whole = x, parts = x;
  chain.apply(whole.data(), 64);
  chain.first(1).apply(parts.data(), 64);
  chain.after(1).apply(parts.data(), 64);
  EXPECT_EQ(whole, parts);
  EXPECT_EQ(chain.first(1).operators().size(), 1u);
  EXPECT_EQ(chain.after(1).operators().size(), 2u);
}

TEST(Chain, OneWithoutOperatorsCopies) {
  const AlignedVector<float> x = gaussian<float>(20);
  AlignedVector<float> y(20);
  Chain().apply_to(x.data(), 20, y.data());
  EXPECT_EQ(x, y);
}

TEST(Chain, WhatFilesSayKeepsBothOperators) {
  BasisChange basis;
  const Chain chain = rht(64, 64);
  for (const OperatorPtr& op : chain.operators()) basis.add(Site::kFfn, op);
  const Json json = basis.to_json();
  ASSERT_EQ(json["ffn"].size(), 2u);
  const auto read = BasisChange::from_json(json);
  ASSERT_TRUE(read.has_value());
  AlignedVector<float> x = gaussian<float>(64), y = x;
  chain.apply(x.data(), 64);
  read->at(Site::kFfn).apply(y.data(), 64);
  EXPECT_EQ(x, y);
}

}  // namespace
}  // namespace quern
