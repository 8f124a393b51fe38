// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace quern {

// Sizes of the axes, slowest first. Rank 0 is a scalar; an axis may be 0.
using Shape = std::vector<int64_t>;

// Product of the axes; nothing if it overflows or an axis is negative.
std::optional<int64_t> element_count(const Shape& shape);

std::string to_string(const Shape& shape);  // "[4096, 256]"

}  // namespace quern
