// SPDX-License-Identifier: Apache-2.0
#include "eval/overlap.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace quern {
namespace {

std::vector<Token> random_text(size_t n, uint64_t seed) {
  Random random(seed);
  std::vector<Token> text(n);
  for (Token& token : text) token = static_cast<Token>(random.below(4096));
  return text;
}

TEST(Overlap, OfATextWithItselfIsAllAndWithAnotherNothing) {
  for (const size_t n :
       {size_t{13}, size_t{100}, size_t{20000}}) {  // fewer runs than are kept, and more
    const std::vector<Token> text = random_text(n, 1);
    const Json sketch = sketch_runs({text});
    EXPECT_EQ(overlap(sketch, text), 1);
    EXPECT_EQ(overlap(sketch, random_text(30000, 2)), 0);
  }
}

TEST(Overlap, IsTheShareThatStoodThere) {
  const std::vector<Token> calibration = random_text(40000, 3);
  std::vector<Token> text = random_text(90000, 4);
  // 10000 tokens in the middle of the text stood in the middle of the other.
  std::copy_n(calibration.begin() + 20000, 10000, text.begin() + 50000);
  const double share = (10000.0 - 12) / (90000 - 12);
  // About 90000 / 40000 * 512 runs are looked up.
  const double error = std::sqrt(share * (1 - share) / (90000.0 / 40000 * 512));
  const auto got = overlap(sketch_runs({{calibration.begin(), calibration.begin() + 15000},
                                        {calibration.begin() + 15000, calibration.end()}}),
                           text);
  ASSERT_TRUE(got.has_value());
  EXPECT_NEAR(*got, share, 4 * error);
}

TEST(Overlap, WhatIsNoSketchSaysNothing) {
  const std::vector<Token> text = random_text(100, 5);
  EXPECT_EQ(sketch_runs({random_text(12, 6)}), Json::object());
  EXPECT_EQ(overlap(Json::object(), text), std::nullopt);
  EXPECT_EQ(overlap(sketch_runs({text}), random_text(12, 6)), std::nullopt);
  for (const char* sketch :
       {"[]", "7", R"({"tokens": 13})", R"({"tokens": 13, "hashes": 5})",
        R"({"tokens": 13, "hashes": "0000000"})", R"({"tokens": 13, "hashes": "0000000g"})",
        R"({"tokens": 13, "hashes": "-0000001"})", R"({"tokens": 12, "hashes": "00000001"})",
        R"({"tokens": "13", "hashes": "00000001"})", R"({"tokens": 13, "hashes": ""})"}) {
    EXPECT_EQ(overlap(Json::parse(sketch), text), std::nullopt) << sketch;
  }
}

}  // namespace
}  // namespace quern
