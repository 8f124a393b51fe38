// SPDX-License-Identifier: Apache-2.0
// A line of codes becomes a line of levels for each code in a byte: shift, look up. Bits above a
// code are those of its neighbours; tables do not look at them. Levels are stored, or meet one row
// of activations while they are in registers: then memory is read without a pause.
//
// Written once for any `Kit` of an instruction set, whose parts have internal linkage, so that what
// is made of these templates has too:
//     Kit::Line, 64 bytes
//         load(p), store(p), spread(p)  spread: each of 16 bytes in the four bytes of its row
//         right<n>(), left<n>()         shifts of 16-bit lanes
//         where(mask, a, b)             bits of a where the constant byte `mask` has ones, else of
//         b a - b                         of bytes
//     Kit::Table<kBits>(levels)         kBits 4, 6 or 8: lines to lines by the lowest kBits bits
//     Kit::Dots                         of 16 rows, whole numbers from 0
//         add(line, x)                  the levels less 128, or not (sums), times four of x
//         sums(offset)                  as floats, when `offset` is -128 times the sum of all x
//     Kit::Floats                       16 of them (kernels/lanes.h)
#pragma once

#include <type_traits>
#include <utility>

#include "codecs/interleaved.h"
#include "codecs/panel_dots.h"
#include "kernels/fetch_ahead.h"

namespace quern {

// The levels of a panel, quad after quad.
template <class Line, int kLow, int kHigh, class Table>
class LevelStream {
  static constexpr int kLowLine = 8 / kLow, kHighLine = kHigh > 0 ? 8 / kHigh : 1;

 public:
  static constexpr int kQuads = kHighLine > kLowLine ? kHighLine : kLowLine;  // in whole lines

  LevelStream(const InterleavedPanel& panel, const Table& table)
      : table_(table),
        low_(panel.low),
        high_(panel.high),
        zeros_(panel.zeros),
        group_quads_(panel.group / 4) {}

  // Calls use(line of levels, quad) for the next n quads. All but the last time n is a multiple of
  // kQuads.
  template <class Use>
  [[gnu::always_inline]] void next(int64_t n, const Use& use) {
    constexpr auto kAll = std::make_integer_sequence<int, kQuads>();
    int64_t q = 0;
    for (; q + kQuads <= n; q += kQuads) quads(kAll, q, kQuads, use);
    quads(kAll, q, n - q, use);
  }

 private:
  // Inlined, so that lines stay in registers from quad to quad.
  template <int... k, class Use>
  [[gnu::always_inline]] void quads(std::integer_sequence<int, k...>, int64_t q, int64_t n,
                                    const Use& use) {
    (..., (k < n ? use(quad<k>(), q + k) : void()));
  }

  template <int k>
  [[gnu::always_inline]] Line quad() {
    if constexpr (k % kLowLine == 0) low_line_ = next_line(low_);
    Line code = low_line_.template right<k % kLowLine * kLow>();
    if constexpr (kHigh > 0) {
      if constexpr (k % kHighLine == 0) high_line_ = next_line(high_);
      constexpr int kShift = k % kHighLine * kHigh - kLow;
      if constexpr (kShift < 0) {
        code = Line::where((1 << kLow) - 1, code, high_line_.template left<-kShift>());
      } else {
        code = Line::where((1 << kLow) - 1, code, high_line_.template right<kShift>());
      }
    }
    const Line level = table_(code);
    if (zeros_ == nullptr) return level;
    if (left_in_group_ == 0) {
      zero_ = Line::spread(zeros_);
      zeros_ += kPanelRows;
      left_in_group_ = group_quads_;
    }
    --left_in_group_;
    return level - zero_;
  }

  static Line next_line(const uint8_t*& plane) {
    const Line line = Line::load(plane);
    fetch_ahead(plane + kFetchAhead);
    plane += 64;
    return line;
  }

  const Table& table_;
  const uint8_t *low_, *high_, *zeros_;
  int64_t group_quads_, left_in_group_ = 0;
  Line zero_{}, low_line_{}, high_line_{};
};

struct SameLevels {
  template <class Line>
  Line operator()(Line code) const {
    return code;
  }
};

// Calls use(stream) with the panel's.
template <class Kit, class Use>
void with_levels(const InterleavedPanel& panel, const Use& use) {
  using Line = typename Kit::Line;
  const auto with = [&]<int kLow, int kHigh>(const auto& table) {
    using Table = std::remove_cvref_t<decltype(table)>;
    use(LevelStream<Line, kLow, kHigh, Table>(panel, table));
  };
  const auto small = [&] { return typename Kit::template Table<4>(panel.levels); };
  const auto medium = [&] { return typename Kit::template Table<6>(panel.levels); };
  switch (panel.low_bits + panel.high_bits) {
    case 1:
      return with.template operator()<1, 0>(small());
    case 2:
      return with.template operator()<2, 0>(small());
    case 3:
      return with.template operator()<2, 1>(small());
    case 4:
      return with.template operator()<4, 0>(small());
    case 5:
      return with.template operator()<4, 1>(medium());
    case 6:
      return with.template operator()<4, 2>(medium());
    default:
      break;
  }
  if (panel.is_level) return with.template operator()<8, 0>(SameLevels());
  with.template operator()<8, 0>(typename Kit::template Table<8>(panel.levels));
}

template <class Kit>
void interleaved_levels(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  with_levels<Kit>(panel, [&](auto stream) {
    stream.next(n_quads, [&](const auto& line, int64_t q) { line.store(levels + 64 * q); });
  });
}

template <class Kit>
void interleaved_dot(const InterleavedProduct& product, float* y) {
  using Floats = typename Kit::Floats;
  const Int8Rows& x = product.x;
  const auto scales_at = [&](int64_t g) {
    const int64_t place = g * x.group / product.scale_group * kPanelRows;
    const Floats scales =
        product.has_halves
            ? Floats::from_half(reinterpret_cast<const char*>(product.scales) + 2 * place)
            : Floats::load(reinterpret_cast<const float*>(product.scales) + place);
    return product.unit == 1 ? scales : Floats::mul(scales, Floats::set(product.unit));
  };
  with_levels<Kit>(product.panel, [&](auto stream) {
    const auto next = [&](int64_t n, const auto& use) { stream.next(n, use); };
    dot_by_groups<typename Kit::Dots, Floats>(x, product.n_quads, next, scales_at).store(y);
  });
}

}  // namespace quern
