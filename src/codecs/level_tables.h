// SPDX-License-Identifier: Apache-2.0
// Levels of scalar quantizers, rising, 2^bits of them at [bits - 1]; empty: there are none. Made by
// scripts/make_level_tables, which says how.
#pragma once

#include <span>

namespace quern {

extern const std::span<const float> kLloydLevels[8];    // for a unit Gaussian
extern const std::span<const float> kLaplaceLevels[8];  // for unit variance
extern const std::span<const float> kNfLevels[8];       // from -1 to 1 with a zero; from 2 bits on

}  // namespace quern
