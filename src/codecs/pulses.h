// SPDX-License-Identifier: Apache-2.0
// pulses: whole numbers of few bits and a step for each group of columns, w_hat = float(step * y).
// What the runtime reads in place of codes that number whole points (pvq). No file holds it, so it
// is in no list.
//
// Layout. codes: U8 [n_out, ceil(n_in bits / 8)], a bit stream per row of y + 2^(bits - 1).
//         steps: F32 [n_out, ceil(n_in / dim)], floats so that products have the codec's bits.
// Bits: bits + 32 / dim.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "codecs/codec.h"

namespace quern {

// Takes the points of a matrix, row by row and from many threads: `read` writes y[n_in] of a row
// and the steps [ceil(n_in / dim)] of its groups. Codes get as few bits as the largest |y| of the
// matrix allows; null if it is above 127. For panels they are interleaved (interleaved.h), where
// dim allows it.
std::shared_ptr<const RuntimeForm> pulses_form(
    int64_t n_out, int64_t n_in, int64_t dim, Reading reading,
    const std::function<void(int64_t row, int16_t* y, float* steps)>& read);

struct PulsesRow {
  const uint8_t* codes;  // ceil(n bits / 8) bytes
  const float* steps;    // [ceil(n / dim)]
  int bits;              // 2 to 8
  int64_t dim, n;
};
void pulses_decode_ref(const PulsesRow& row, float* dst);
void pulses_decode_avx512(const PulsesRow& row, float* dst);  // dim a multiple of 8

}  // namespace quern
