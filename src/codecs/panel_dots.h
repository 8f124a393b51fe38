// SPDX-License-Identifier: Apache-2.0
// One row of activations against a panel whose levels come line after line, group by group as
// kernels/panels.h has it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/panels.h"

namespace quern {

// next(n, use) calls use(line, quad) for the next n quads; Dots adds lines up
// (interleaved_lines.h); scales_at(g) has the scales of a group of the row. Dots has internal
// linkage, so this has too.
template <class Dots, class Floats, class Next, class ScalesAt>
[[gnu::always_inline]] inline Floats dot_by_groups(const Int8Rows& x, int64_t n_quads,
                                                   const Next& next, const ScalesAt& scales_at) {
  const int64_t group_quads = x.group / 4;
  Floats sum = Floats::set(0);
  for (int64_t g = 0, q = 0; g < x.n_groups; ++g, q += group_quads) {
    const int8_t* columns = x.levels + g * x.group;
    Dots dots[2];  // in turn: each waits for its last
    next(std::min(group_quads, n_quads - q),
         [&](const auto& line, int64_t k) { dots[k % 2].add(line, columns + 4 * k); });
    dots[0].add(dots[1]);
    const Floats scale = Floats::mul(scales_at(g), Floats::set(x.scales[g]));
    sum = Floats::fma(dots[0].sums(x.offsets[g]), scale, sum);
  }
  return sum;
}

}  // namespace quern
