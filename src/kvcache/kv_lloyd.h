// SPDX-License-Identifier: Apache-2.0
// Levels of a table with a scale per position: the page of kv_lloyd.cc, and its kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kvcache/kv_codes.h"

namespace quern {

// Numbers are scale * level[code], in row order: values [kKeyBlock, d_head], or turned, keys
// [d_head, kKeyBlock]; d_head a multiple of 16. A page: codes as in kv_codes.h, then the scale of
// each position, F16 [kKeyBlock].
struct KvLloydShape {
  int bits = 0;  // 1 to 4
  int64_t d_head = 0;
  bool is_turned = false;

  int64_t size() const { return kKeyBlock * d_head; }
  int64_t code_bytes() const { return kv_code_bytes(bits, size()); }
  int64_t page_bytes() const { return code_bytes() + 2 * kKeyBlock; }
};

// `levels`: 2^bits of them.
void decode_kv_lloyd_ref(const KvLloydShape& shape, const float* levels, const std::byte* page,
                         float* x);
void decode_kv_lloyd_avx512(const KvLloydShape& shape, const float* levels, const std::byte* page,
                            float* x);

}  // namespace quern
