// SPDX-License-Identifier: Apache-2.0
#include "codecs/bit_stream_avx512.h"
#include "codecs/pulses.h"

namespace quern {
namespace {

// Steps of the columns in ascending order.
class Steps {
 public:
  explicit Steps(const PulsesRow& row) : next_(row.steps), dim_(row.dim) {}
  float at(int64_t j) {
    if (j >= end_) {
      step_ = *next_++;
      end_ += dim_;
    }
    return step_;
  }

 private:
  const float* next_;
  int64_t dim_, end_ = 0;
  float step_ = 0;
};

template <int kQuarter>
void decode_quarter(__m512i pulses, int64_t j, const PulsesRow& row, Steps& steps, float* dst) {
  if (j >= row.n) return;
  const __m512 y =
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(pulses, kQuarter)));
  __m512 step = _mm512_set1_ps(steps.at(j));
  if (j + 8 < row.n) step = _mm512_mask_mov_ps(step, 0xff00, _mm512_set1_ps(steps.at(j + 8)));
  const int64_t left = row.n - j;
  const auto in_row = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
  _mm512_mask_storeu_ps(dst + j, in_row, _mm512_mul_ps(step, y));
}

}  // namespace

void pulses_decode_avx512(const PulsesRow& row, float* dst) {
  const CodeReaderAvx512 reader(row.codes, row.n, row.bits);
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(1 << (row.bits - 1)));
  Steps steps(row);
  for (int64_t j = 0; j < row.n; j += 64) {
    const __m512i pulses = _mm512_sub_epi8(reader.read(j), zero);
    decode_quarter<0>(pulses, j, row, steps, dst);
    decode_quarter<1>(pulses, j + 16, row, steps, dst);
    decode_quarter<2>(pulses, j + 32, row, steps, dst);
    decode_quarter<3>(pulses, j + 48, row, steps, dst);
  }
}

}  // namespace quern
