// SPDX-License-Identifier: Apache-2.0
#include "kernels/level_block.h"

#include <cmath>
#include <tuple>

#include "kernels/parity_testing.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

using Share = LevelBlock::Share;
using Sign = LevelBlock::Sign;

// A block of random levels and rows to meet it.
struct Problem {
  LevelBlock block;
  std::vector<std::byte> codes;
  std::vector<uint8_t> table;  // of codes of at most 4 bits, unless the seed is even
  std::vector<float> scales, centres, a;
  int64_t n;

  Problem(const LevelBlock& shape, bool has_centres, int64_t n, uint64_t seed)
      : block(shape), n(n) {
    Random random(seed);
    LevelCodes& levels = block.levels;
    levels.n = block.rows * block.cols;
    codes.resize(static_cast<size_t>(level_code_bytes(levels.bits, levels.n)));
    for (std::byte& code : codes) code = static_cast<std::byte>(random.next());
    table.resize(16);
    for (uint8_t& level : table) level = static_cast<uint8_t>(random.next());
    const int64_t other = block.share == Share::kDown ? block.cols : block.rows;
    const auto draw = [&](std::vector<float>& x, int64_t count) {
      x.resize(static_cast<size_t>(count));
      for (float& value : x) value = static_cast<float>(random.gaussian());
    };
    draw(scales, block.n_groups() * other);
    draw(centres, block.n_groups() * other);
    draw(a, n * block.rows);
    for (float& scale : scales) scale = std::fabs(scale);
    if (block.sign == Sign::kUnsigned) {
      for (float& value : a) value = std::fabs(value);
    }
    levels.codes = codes.data();
    if (levels.bits <= 4 && seed % 2 == 1) levels.table = table.data();
    block.next = codes.data();
    block.n_next = static_cast<int64_t>(codes.size());
    block.scales = scales.data();
    block.centres = has_centres ? centres.data() : nullptr;
  }
  const float* row(int64_t i) const { return a.data() + i * block.rows; }

  // Rows [first, first + count), in one call.
  std::vector<float> product(const KernelTable& table, int64_t first, int64_t count,
                             float start = 1.5f) const {
    const int64_t n_groups = count * block.n_groups(), ld_y = block.cols + 3;
    testing::Guarded<uint8_t> q(count * block.n_sets() * block.planes * block.rows, 5);
    testing::Guarded<float> steps(n_groups), sums(n_groups), y(count * ld_y);
    testing::Guarded<int32_t> offsets(n_groups);
    for (int64_t i = 0; i < count * ld_y; ++i) y[i] = start;
    const LevelRows rows{q.data(), steps.data(), offsets.data(), sums.data()};
    table.round_level_rows(row(first), block.rows, count, block, rows);
    table.level_dot(block, rows, count, y.data(), ld_y);
    EXPECT_TRUE(q.guards_hold() && steps.guards_hold() && sums.guards_hold());
    EXPECT_TRUE(y.guards_hold() && offsets.guards_hold());
    std::vector<float> out;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < block.cols; ++j) out.push_back(y[i * ld_y + j]);
      for (int64_t j = block.cols; j < ld_y; ++j) EXPECT_EQ(y[i * ld_y + j], start);
    }
    return out;
  }
};

// Every shape with one width of codes, all of them in turns.
template <class F>
void for_each_shape(const F& f) {
  constexpr int kBits[] = {8, 2, 4, 1, 8, 3, 2};
  size_t n_shapes = 0;
  for (const Share share : {Share::kDown, Share::kAcross}) {
    for (const Sign sign : {Sign::kSigned, Sign::kUnsigned}) {
      for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
               {16, 64}, {64, 64}, {80, 64}, {256, 64}, {64, 16}, {64, 80}, {64, 128}}) {
        const int64_t length = share == Share::kDown ? rows : cols;
        for (const int64_t group : {int64_t{16}, int64_t{32}, length}) {
          if (length % group != 0) continue;
          for (const int planes : {1, 2}) {
            LevelBlock block;
            block.levels.bits = kBits[n_shapes++ % std::size(kBits)];
            block.rows = rows;
            block.cols = cols;
            block.group = group;
            block.share = share;
            block.sign = sign;
            block.planes = planes;
            f(block);
          }
        }
      }
    }
  }
}

TEST(LevelBlock, EveryIsaGivesTheSameBits) {
  uint64_t seed = 0;
  for_each_shape([&](LevelBlock shape) {
    for (const int zero : {0, 2, 128}) {
      shape.zero = zero;
      const int64_t n = 1 + static_cast<int64_t>(++seed % 17);
      Problem p(shape, seed % 3 != 0, n, seed);
      if (seed % 5 == 0) {  // zeros, and what is no number
        for (size_t i = 0; i < p.a.size(); i += 3) p.a[i] = 0;
        for (size_t i = 0; i < p.scales.size(); i += 6) p.scales[i] = std::nanf("");
        p.a[p.a.size() / 2] = std::numeric_limits<float>::infinity();
        p.a.back() = 1e-38f;
      }
      const std::vector<float> want = p.product(kernels(Isa::kRef), 0, n);
      for (const Isa isa : testing::fast_isas()) {
        const std::vector<float> got = p.product(kernels(isa), 0, n);
        for (size_t i = 0; i < want.size(); ++i) {
          ASSERT_TRUE(testing::same_bits(got[i], want[i]))
              << isa_name(isa) << " rows=" << shape.rows << " cols=" << shape.cols
              << " group=" << shape.group << " bits=" << shape.levels.bits << " n=" << n
              << " planes=" << shape.planes << " at " << i;
        }
      }
    }
  });
}

// Rows of scores that see all of a block, a part of it, or nothing of it.
struct Scores {
  std::vector<float> x, tops, sums;
  std::vector<int32_t> first, last;

  explicit Scores(const Problem& p)
      : x(p.a), tops(static_cast<size_t>(p.n)), sums(tops.size() * 16, 0.5f) {
    const auto n_cols = static_cast<int32_t>(p.block.rows);
    for (int64_t i = 0; i < p.n; ++i) {
      tops[static_cast<size_t>(i)] = 2.0f + 0.1f * static_cast<float>(i);
      const auto seen = static_cast<int32_t>(i * 7 % n_cols);
      first.push_back(i % 3 == 1 ? seen : 0);
      last.push_back(i % 3 == 2 ? seen : n_cols);
    }
    x[5] = -std::numeric_limits<float>::infinity();
  }
  ScoreRows rows(int64_t n_cols) {
    return {x.data(), n_cols, n_cols, first.data(), last.data(), 1.3f, tops.data(), sums.data()};
  }
};

TEST(LevelBlock, RoundedPowersAreThoseOfPowersAtEveryIsa) {
  uint64_t seed = 0;
  for_each_shape([&](const LevelBlock& shape) {
    if (shape.share != Share::kAcross) return;
    const int64_t n = 1 + static_cast<int64_t>(++seed % 9);
    Problem p(shape, seed % 3 != 0, n, seed);
    for (const Isa isa : testing::fast_isas()) {
      Scores apart(p), together(p);
      kernels(Isa::kRef).exp_rows(apart.rows(shape.rows), n);
      const auto size = static_cast<size_t>(n * shape.n_sets() * shape.planes * shape.rows);
      const auto n_groups = static_cast<size_t>(n * shape.n_groups());
      const auto round = [&](const auto& f) {
        std::vector<uint8_t> q(size);
        std::vector<float> steps(n_groups), sums(n_groups);
        std::vector<int32_t> offsets(n_groups);
        f(LevelRows{q.data(), steps.data(), offsets.data(), sums.data()});
        return std::tuple(q, steps, sums, offsets);
      };
      const auto want = round([&](const LevelRows& rows) {
        kernels(Isa::kRef).round_level_rows(apart.x.data(), shape.rows, n, p.block, rows);
      });
      const auto got = round([&](const LevelRows& rows) {
        kernels(isa).round_exp_rows(together.rows(shape.rows), n, p.block, rows);
      });
      ASSERT_EQ(got, want) << isa_name(isa) << " rows=" << shape.rows << " n=" << n;
      ASSERT_EQ(together.sums, apart.sums) << isa_name(isa);
      Scores alone(p);
      kernels(isa).exp_rows(alone.rows(shape.rows), n);
      ASSERT_EQ(alone.x, apart.x) << isa_name(isa);
      ASSERT_EQ(alone.sums, apart.sums) << isa_name(isa);
    }
  });
}

TEST(LevelBlock, PowersAreZeroWhereNothingIsSeen) {
  LevelBlock shape;
  shape.rows = shape.cols = shape.group = 64;
  const Problem p(shape, false, 6, 1);
  Scores scores(p);
  kernels().exp_rows(scores.rows(64), p.n);
  for (int64_t i = 0; i < p.n; ++i) {
    const auto row = static_cast<size_t>(i);
    double sum = 0, lanes = 0;
    for (int64_t j = 0; j < 64; ++j) {
      const bool is_seen = scores.first[row] <= j && j < scores.last[row];
      const double power = static_cast<double>(p.row(i)[j]) * 1.3f - scores.tops[row];
      const bool is_cut = i == 0 && j == 5;
      const double want = is_seen && !is_cut ? std::exp2(power) : 0;
      const float got = scores.x[row * 64 + static_cast<size_t>(j)];
      ASSERT_NEAR(got, want, 1e-6 * want);
      sum += got;
    }
    for (size_t l = 0; l < 16; ++l) lanes += scores.sums[row * 16 + l] - 0.5f;
    ASSERT_NEAR(lanes, sum, 1e-5);
  }
}

TEST(LevelBlock, ARowAloneHasTheBitsOfARowAmongOthers) {
  uint64_t seed = 0;
  for_each_shape([&](LevelBlock shape) {
    shape.zero = 8;
    const Problem p(shape, true, 15, ++seed);
    const std::vector<float> together = p.product(kernels(), 0, p.n);
    std::vector<float> alone;
    for (int64_t i = 0; i < p.n; ++i) {
      const std::vector<float> one = p.product(kernels(), i, 1);
      alone.insert(alone.end(), one.begin(), one.end());
    }
    ASSERT_EQ(together, alone);
  });
}

// A row's numbers are off by half a step, which meets levels about zero: the rest is exact but for
// roundings of floats.
TEST(LevelBlock, ProductsAreOffByHalfAStepOfTheRow) {
  uint64_t seed = 0;
  for_each_shape([&](LevelBlock shape) {
    shape.zero = shape.sign == Sign::kSigned ? 128 : 0;
    const Problem p(shape, true, 3, ++seed);
    const LevelBlock& b = p.block;
    std::vector<float> x(static_cast<size_t>(b.rows * b.cols));
    kernels().level_floats(b, x.data());
    const std::vector<float> y = p.product(kernels(), 0, p.n, 0.0f);
    const int64_t other = b.share == Share::kDown ? b.cols : b.rows;
    for (int64_t i = 0; i < p.n; ++i) {
      for (int64_t j = 0; j < b.cols; ++j) {
        double exact = 0, size = 0, bound = 0;
        for (int64_t r = 0; r < b.rows; ++r) {
          const bool is_down = b.share == Share::kDown;
          const int64_t g = (is_down ? r : j) / b.group;
          const int64_t at = g * other + (is_down ? j : r);
          const double term = static_cast<double>(p.row(i)[r]) * x[r * b.cols + j];
          exact += term;
          size += std::fabs(term) + std::fabs(static_cast<double>(p.row(i)[r]) * p.centres[at]);
          // The largest of what is rounded with this number.
          double largest = 0;
          for (int64_t k = 0; k < b.rows; ++k) {
            if (is_down && k / b.group != g) continue;
            const double scale = is_down ? 1 : p.scales[g * other + k];
            largest = std::max(largest, std::fabs(p.row(i)[k] * scale));
          }
          const double level = (x[r * b.cols + j] - p.centres[at]) / p.scales[at];
          const double step = largest / b.most() * (is_down ? p.scales[at] : 1.0);
          bound += std::fabs(level) * step / 2;
        }
        ASSERT_NEAR(y[i * b.cols + j], exact, bound * 1.001 + size * 0x1p-22);
      }
    }
  });
}

// 1 in a row takes a column as it is, whatever the scales, where steps are powers of two.
TEST(LevelBlock, RowsWithoutWeightDoNotCount) {
  LevelBlock shape;
  shape.rows = shape.cols = shape.group = 64;
  shape.share = Share::kAcross;
  shape.sign = Sign::kUnsigned;
  Problem p(shape, true, 1, 1);
  std::fill(p.a.begin(), p.a.end(), 0.0f);
  p.a[7] = 255;
  p.scales[7] = 0.5f;
  p.centres[7] = 0.25f;
  for (int64_t r = 0; r < 64; ++r) {
    if (r == 7) continue;
    p.scales[static_cast<size_t>(r)] = std::nanf("");
    p.centres[static_cast<size_t>(r)] = std::numeric_limits<float>::infinity();
  }
  for (const Isa isa : {Isa::kRef, best_isa()}) {
    const std::vector<float> y = p.product(kernels(isa), 0, 1, 0.0f);
    for (int64_t j = 0; j < 64; ++j) {
      const auto level = static_cast<int8_t>(p.block.levels.at(level_place(64, 7, j)));
      EXPECT_EQ(y[static_cast<size_t>(j)], 255 * (0.5f * level + 0.25f));
    }
  }
}

TEST(LevelBlock, FloatsAreAlikeAtEveryIsa) {
  uint64_t seed = 100;
  for_each_shape([&](LevelBlock shape) {
    shape.zero = shape.sign == Sign::kSigned ? 8 : 0;
    for (const bool has_centres : {false, true}) {
      const Problem p(shape, has_centres, 1, ++seed);
      std::vector<float> want(static_cast<size_t>(shape.rows * shape.cols));
      kernels(Isa::kRef).level_floats(p.block, want.data());
      EXPECT_EQ(level_float(p.block, 3, 5), want[static_cast<size_t>(3 * shape.cols + 5)]);
      for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
        if (!host_has(isa)) continue;
        testing::Guarded<float> x(shape.rows * shape.cols);
        kernels(isa).level_floats(p.block, x.data());
        EXPECT_TRUE(x.guards_hold());
        EXPECT_TRUE(std::equal(want.begin(), want.end(), x.data()));
      }
    }
  });
}

}  // namespace
}  // namespace quern
