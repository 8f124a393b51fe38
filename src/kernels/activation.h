// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace quern {

// silu x * sigmoid(x); gelu with erf, and its tanh approximation; relu; relu squared.
enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh, kRelu, kRelu2 };

}  // namespace quern
