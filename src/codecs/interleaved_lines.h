// SPDX-License-Identifier: Apache-2.0
// A line of codes becomes a line of levels for each code in a byte: shift, look up, store. Bits
// above a code are those of its neighbours; tables do not look at them.
//
// Written once for any `Line` of 64 bytes:
//     load(p), store(p), spread(p)    spread: each of 16 bytes in the four bytes of its row
//     right<n>(), left<n>()           shifts of 16-bit lanes
//     where(mask, a, b)               bits of a where the constant byte `mask` has ones, else of b
//     a - b                           of bytes
// and `Table<kBits>(levels)`, kBits 4, 6 or 8, which maps lines to lines by the lowest kBits bits.
// Lines and tables have internal linkage, so that what is made of this template has too.
#pragma once

#include <utility>

#include "codecs/interleaved.h"
#include "kernels/fetch_ahead.h"

namespace quern {

template <class Line, int kLow, int kHigh, class Table>
void write_levels(const InterleavedPanel& panel, const Table& table, int64_t n_quads,
                  uint8_t* levels) {
  constexpr int kLowLine = 8 / kLow, kHighLine = kHigh > 0 ? 8 / kHigh : 1;
  constexpr int kQuads = kHighLine > kLowLine ? kHighLine : kLowLine;  // that end a line of both
  const uint8_t *low = panel.low, *high = panel.high, *zeros = panel.zeros;
  Line zero{}, low_line{}, high_line{};
  int64_t group_end = 0;
  const auto quad = [&]<int k>(int64_t q) {
    if constexpr (k % kLowLine == 0) {
      low_line = Line::load(low);
      fetch_ahead(low + kFetchAhead);
      low += 64;
    }
    Line code = low_line.template right<k % kLowLine * kLow>();
    if constexpr (kHigh > 0) {
      if constexpr (k % kHighLine == 0) {
        high_line = Line::load(high);
        fetch_ahead(high + kFetchAhead);
        high += 64;
      }
      constexpr int kShift = k % kHighLine * kHigh - kLow;
      if constexpr (kShift < 0) {
        code = Line::where((1 << kLow) - 1, code, high_line.template left<-kShift>());
      } else {
        code = Line::where((1 << kLow) - 1, code, high_line.template right<kShift>());
      }
    }
    Line level = table(code);
    if (zeros != nullptr) {
      if (4 * q >= group_end) {
        zero = Line::spread(zeros);
        zeros += kPanelRows;
        group_end += panel.group;
      }
      level = level - zero;
    }
    level.store(levels + 64 * q);
  };
  const auto quads = [&]<int... k>(std::integer_sequence<int, k...>, int64_t q, int64_t n) {
    (..., (k < n ? quad.template operator()<k>(q + k) : void()));
  };
  constexpr auto kAll = std::make_integer_sequence<int, kQuads>();
  int64_t q = 0;
  for (; q + kQuads <= n_quads; q += kQuads) quads(kAll, q, kQuads);
  quads(kAll, q, n_quads - q);
}

struct SameLevels {
  template <class Line>
  Line operator()(Line code) const {
    return code;
  }
};

template <class Line, template <int> class Table>
void interleaved_levels(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  const auto small = [&] { return Table<4>(panel.levels); };
  switch (panel.low_bits + panel.high_bits) {
    case 1:
      return write_levels<Line, 1, 0>(panel, small(), n_quads, levels);
    case 2:
      return write_levels<Line, 2, 0>(panel, small(), n_quads, levels);
    case 3:
      return write_levels<Line, 2, 1>(panel, small(), n_quads, levels);
    case 4:
      return write_levels<Line, 4, 0>(panel, small(), n_quads, levels);
    case 5:
      return write_levels<Line, 4, 1>(panel, Table<6>(panel.levels), n_quads, levels);
    case 6:
      return write_levels<Line, 4, 2>(panel, Table<6>(panel.levels), n_quads, levels);
    default:
      break;
  }
  if (panel.is_level) return write_levels<Line, 8, 0>(panel, SameLevels(), n_quads, levels);
  write_levels<Line, 8, 0>(panel, Table<8>(panel.levels), n_quads, levels);
}

}  // namespace quern
