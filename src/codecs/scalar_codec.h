// SPDX-License-Identifier: Apache-2.0
// What the codecs of scalars have in common: a table of levels, and for each group of columns a
// scale, perhaps one for each sign, perhaps a shift.
//
//     w_hat = scale * level(code) + shift,    rounded after the product and after the sum
//
// Everything stored is rounded before a code is chosen. With u = w - shift, the scale is
//     absmax   p * max|u| / (the level at that end)     p = 1
//     rms      sqrt(mean u^2)                           for tables made for unit variance
// or, with clip search, of p = 1, 0.99, ..., 0.21 times the rule's and times absmax's the one of
// least sum_j weight_j |w_j - w_hat_j|^norm. With two sides each sign has a scale by the same rules
// from its own entries (AFPQ). e8m0 scales follow the microscaling rule 2^(floor(log2 max|u|) -
// floor(log2 highest)); a search tries that and twice that.
//
// The shift is the group's median, or the one of median + f * max|w - median|, f of 201 steps in
// +-0.1 / Phi^-1(0.9677083), whose codes have the largest entropy (ICQ; the first of several).
//
// Planes: codes, high (widths 5 to 7), then those of the scales, then those of the shifts.
#pragma once

#include <memory>
#include <string>

#include "codecs/codec.h"
#include "codecs/scalar_table.h"
#include "codecs/stored_scalars.h"

namespace quern {

enum class ScaleRule : uint8_t { kAbsmax, kRms };
enum class ShiftRule : uint8_t { kNone, kMedian, kEntropy };

struct ScalarCodecOptions {
  std::string spec;
  Claim claim;
  ScalarTable table;
  int64_t group = 0;  // 0: the row
  ScalarForm scale = ScalarForm::kF16;
  ScaleRule rule = ScaleRule::kAbsmax;
  ScalarForm shift_form = ScalarForm::kF16;
  ShiftRule shift = ShiftRule::kNone;
  int sides = 1;
  bool clip_search = false;
  double norm = 2;
};

std::unique_ptr<Codec> make_scalar_codec(ScalarCodecOptions options);

}  // namespace quern
