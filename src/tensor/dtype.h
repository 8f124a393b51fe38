// SPDX-License-Identifier: Apache-2.0
// Element types of stored tensors, named as safetensors names them.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace quern {

enum class DType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
  kF4,
  kF6E2M3,
  kF6E3M2,
};

std::string_view dtype_name(DType dtype);                     // "BF16"
std::optional<DType> dtype_from_name(std::string_view name);  // nothing if unknown
int dtype_bits(DType dtype);                                  // bits of one element

// Types whose values convert to float one by one: F64, F32, F16, BF16.
bool is_plain_float(DType dtype);

// dst[i] = float(src[i]) for n elements of a plain float type. `src` may be unaligned.
void convert_to_float(DType dtype, const void* src, int64_t n, float* dst);
// dst[i] = src[i] rounded to nearest even. `dst` may be unaligned. F32, F16, BF16, F64.
void convert_from_float(const float* src, int64_t n, DType dtype, void* dst);

}  // namespace quern
