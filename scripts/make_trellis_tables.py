#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints src/codecs/trellis_tables.cc: the upper half of 64, 128 and 256 equally probable values of
a unit Gaussian, scaled so that the largest is 127 and rounded to int8. The lower half mirrors it."""
from statistics import NormalDist


def upper_half(n):
    q = [NormalDist().inv_cdf((n / 2 + i + 0.5) / n) for i in range(n // 2)]
    return [round(127 * x / q[-1]) for x in q]


print("""// SPDX-License-Identifier: Apache-2.0
// Made by scripts/make_trellis_tables.py.
#include "codecs/trellis_code.h"

namespace quern {
""")
for n in (64, 128, 256):
    rows = upper_half(n)
    print(f"const int8_t kTrellisLevels{n}[{n // 2}] = {{")
    for i in range(0, len(rows), 16):
        print("    " + ", ".join(str(x) for x in rows[i : i + 16]) + ",")
    print("};\n")
print("}  // namespace quern")
