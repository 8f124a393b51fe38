// SPDX-License-Identifier: Apache-2.0
// The mathematics of DuQuant (arXiv 2406.01721): rotations of blocks of channels that are aimed at
// the largest values, and the permutation that shares large channels out among blocks. Values are
// rows, a rotation maps a row z to z R.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/random.h"
#include "tensor/matrix.h"

namespace quern {

// R~ of order n: orthogonal, its first row 1 / sqrt n throughout (the paper's equation 2).
Matrix<double> flat_rotation(int64_t n);

// How far values reach: max |z| (the paper), or max z - min z (its published code).
enum class Peak : uint8_t { kAbsMax, kRange };
// Where the random rotation Q of the other n - 1 dimensions stands: R~ Q (the paper), which leaves
// no row flat, or Q R~, which keeps the first row flat.
enum class RandomSide : uint8_t { kRight, kLeft };

struct GreedyOptions {
  int64_t block = 128;  // n, divides the length of rows
  int steps = 256;
  Peak peak = Peak::kAbsMax;
  RandomSide side = RandomSide::kRight;
};

struct GreedyRotation {
  Matrix<double> rotation;  // [block, block], the same for all blocks
  int steps = 0;            // of those tried, how many it is made of; 0: the identity
  double peak_before = 0, peak = 0;
};

// The greedy search of the paper (equations 3 to 5). With j the channel (within its block) of the
// largest |z|, a step multiplies by E_j (R~ Q) E_j, where E_j swaps 0 and j and Q is random but
// keeps channel 0; the product of those steps is kept after which the peak was lowest. Peaks are
// taken in single precision. Blocks of rows keep their length in a step, so that those shorter than
// the peak need no look.
GreedyRotation greedy_rotation(MatrixView<const float> values, const GreedyOptions& options,
                               Random& random);

// The zigzag permutation: channels by falling size are dealt to the blocks there and back again,
// and stay in this order within a block. Position i of the result holds channel perm[i].
std::vector<int32_t> zigzag(std::span<const float> size, int64_t block);

}  // namespace quern
