// SPDX-License-Identifier: Apache-2.0
#include "model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/forward.h"

namespace quern {
namespace {

RopeDesc two_dims(double frequency) {
  RopeDesc rope;
  rope.n_dims = 4;
  rope.inv_freq = {1, frequency};
  rope.inv_freq_long = {1, frequency / 3};
  rope.original_context = 100;
  rope.magnitude = 1.5;
  return rope;
}

void expect_angles(const RopeTable& table, int64_t row, double position, double frequency) {
  EXPECT_EQ(table.cosine(row, 1), static_cast<float>(1.5 * std::cos(position * frequency)));
  EXPECT_EQ(table.sine(row, 1), static_cast<float>(1.5 * std::sin(position * frequency)));
}

TEST(RopeTables, RowsTurnByTheirPositions) {
  const SequenceRows sequences[] = {{nullptr, 5, 40, 100}, {nullptr, 7, 2, 101}};
  RopeTables tables;
  const RopeTable& table = tables.at(two_dims(0.3), sequences);
  ASSERT_EQ(table.cosine.rows(), 42);
  for (int64_t i = 0; i < 40; ++i) expect_angles(table, i, 5.0 + static_cast<double>(i), 0.3);
  expect_angles(table, 41, 8, 0.3 / 3);  // the context in use is long
}

TEST(RopeTables, AreKeptForTheSameRowsAlone) {
  const SequenceRows now{nullptr, 5, 1, 100}, next{nullptr, 6, 1, 100}, longer{nullptr, 6, 1, 200};
  RopeTables tables;
  const float* made = tables.at(two_dims(0.3), {&now, 1}).cosine.data();
  expect_angles(tables.at(two_dims(0.5), {&now, 1}), 0, 5, 0.5);
  EXPECT_EQ(tables.at(two_dims(0.3), {&now, 1}).cosine.data(), made);
  expect_angles(tables.at(two_dims(0.3), {&next, 1}), 0, 6, 0.3);
  expect_angles(tables.at(two_dims(0.3), {&longer, 1}), 0, 6, 0.3 / 3);
}

}  // namespace
}  // namespace quern
