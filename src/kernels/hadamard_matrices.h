// SPDX-License-Identifier: Apache-2.0
// Constructions of Hadamard matrices as signs; see hadamard.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quern {

// Had_K by the named construction, [k, k] row-major; nothing where it does not give order k.
std::optional<std::vector<int8_t>> hadamard_matrix(int64_t k, std::string_view construction);

// The first of sylvester (k = 1), paley1, paley2, williamson that gives order k; nothing if none.
std::optional<std::string> hadamard_construction(int64_t k);

}  // namespace quern
