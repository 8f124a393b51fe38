// SPDX-License-Identifier: Apache-2.0
// Claims of a codec for the specs for which somebody computed one.
#pragma once

#include <span>
#include <string_view>

#include "codecs/codec.h"

namespace quern {

struct ClaimRow {
  std::string_view spec;  // canonical
  double mse;
  std::string_view source;
};

inline Claim find_claim(std::span<const ClaimRow> rows, std::string_view spec, double bits) {
  for (const ClaimRow& row : rows) {
    if (row.spec == spec) return {bits, row.mse, row.source};
  }
  return {bits, 0, "no Gaussian claim"};
}

}  // namespace quern
