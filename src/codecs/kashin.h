// SPDX-License-Identifier: Apache-2.0
// x = u + P v with flat u and v (arXiv 2404.09737, vectors of its follow-up arXiv 2609.11687), P
// the orthonormal Hadamard transform H of n = 2^log2_n numbers, which is its own inverse.
//
// Steps are projections: with c = |r|_1 / n, taking c sign(r) from r and adding it to u lowers
// |r|^2 by n c^2; on P r the same serves v. A round is two steps of u and two of v, which leaves
// both with peaks at +-c1 +- c2.
#pragma once

#include <cstdint>

namespace quern {

inline constexpr float kKashinTolerance = 1e-3f;  // of |x|_1

// Up to `rounds` rounds on r[n], x at first, until |r|_1 is at most `tolerance` |x|_1. Adds to u
// and v; x = u + P v + r throughout.
void kashin_split(int log2_n, int rounds, float tolerance, float* r, float* u, float* v);

}  // namespace quern
