// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "activations/act_quantizer.h"
#include "base/random.h"
#include "codecs/small_float.h"

namespace quern {
namespace {

struct Element {
  std::string name;
  float most;
  std::vector<float> levels;  // of codes in order, finite
};

std::vector<Element> elements() {
  std::vector<Element> list = {{"e4m3", 448, small_float_levels(4, 3)},
                               {"e5m2", 57344, small_float_levels(5, 2)}};
  for (Element& element : list) {
    std::erase_if(element.levels, [](float level) { return !std::isfinite(level); });
  }
  return list;
}

// A row with the largest element in it has a scale of one: what comes out are elements.
TEST(Fp8Act, EveryElementIsItself) {
  for (const Element& element : elements()) {
    std::vector<float> x = element.levels, y(x.size());
    (*make_act("fp8(" + element.name + ")"))
        ->values(x.data(), static_cast<int64_t>(x.size()), {}, y.data());
    EXPECT_EQ(*std::max_element(x.begin(), x.end()), element.most);
    for (size_t j = 0; j < x.size(); ++j) EXPECT_EQ(y[j], x[j]) << element.name;
  }
}

TEST(Fp8Act, AnyValueGoesToTheNearestElementAndTiesToEven) {
  for (const Element& element : elements()) {
    std::vector<float> magnitudes;  // rising; the index is the code
    for (const float level : element.levels) {
      if (!std::signbit(level)) magnitudes.push_back(level);
    }
    Random random(1);
    std::vector<float> x = {element.most};
    for (int i = 0; i < 20000; ++i) {
      const double exponent = -18 + 34 * random.uniform();
      const double size = std::exp2(exponent) * (random.below(2) == 0 ? 1 : -1);
      if (std::abs(size) < element.most) x.push_back(static_cast<float>(size));
    }
    for (size_t i = 0; i + 1 < magnitudes.size(); ++i) {
      x.push_back((magnitudes[i] + magnitudes[i + 1]) / 2);
    }
    std::vector<float> y(x.size());
    (*make_act("fp8(" + element.name + ")"))
        ->values(x.data(), static_cast<int64_t>(x.size()), {}, y.data());
    for (size_t j = 0; j < x.size(); ++j) {
      const float size = std::abs(x[j]);
      size_t best = 0;
      for (size_t i = 1; i < magnitudes.size(); ++i) {
        const float now = std::abs(magnitudes[i] - size),
                    before = std::abs(magnitudes[best] - size);
        if (now < before || (now == before && i % 2 == 0)) best = i;
      }
      ASSERT_EQ(y[j], std::copysign(magnitudes[best], x[j])) << element.name << " " << x[j];
    }
  }
}

TEST(Fp8Act, TheLargestOfARowIsTheLargestElement) {
  std::vector<float> x = {0.1f, -3.7f, 1.25f}, y(3);
  (*make_act("fp8"))->values(x.data(), 3, {}, y.data());
  EXPECT_NEAR(y[1], -3.7f, 1e-6f);
  EXPECT_LE(std::abs(y[0] - 0.1f), 0.1f / 16);
}

TEST(Fp8Act, AStaticScaleHoldsWhatLiesBeyond) {
  const auto act = *make_act("fp8(e4m3, per=tensor, scale=static)");
  const std::vector<float> low = {-1, 0}, high = {0.5f, 2};
  const std::vector<float> ranges = act->ranges(low, high);
  EXPECT_EQ(ranges, std::vector<float>{2});
  const std::vector<float> x = {5, -5, 1};
  std::vector<float> y(3);
  act->values(x.data(), 3, ranges, y.data());
  EXPECT_EQ(y, (std::vector<float>{2, -2, 1}));
}

TEST(Fp8Act, RefusesAScaleOfABatch) {
  EXPECT_FALSE(make_act("fp8(e4m3, per=tensor)").has_value());
  EXPECT_FALSE(make_act("fp8(e4m3, scale=static)").has_value());
}

}  // namespace
}  // namespace quern
