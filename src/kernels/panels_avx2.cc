// SPDX-License-Identifier: Apache-2.0
// Panels against int8 rows with 16-bit products: |w| times x with the sign of w, in pairs that
// cannot saturate (2 * 128 * 127 < 2^15), then pairs of pairs.
#include <algorithm>
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/tables.h"

namespace quern {
namespace {

constexpr int kBlock = 4;  // rows of activations that share the unpacked levels

// kX rows of activations from row i on, and panel p.
template <int kX>
void dot_block(const Panels& w, const Int8Rows& x, int64_t p, int64_t i, float* y, int64_t ld_y) {
  const __m256i zero = _mm256_set1_epi8(static_cast<char>(kPanelZero));
  const __m256i ones = _mm256_set1_epi16(1);
  const uint8_t* levels = w.levels + p * w.levels_stride;
  const float* scales = w.scales + p * w.scales_stride;
  const int64_t first = i * x.n_groups + w.first_group;
  const int64_t n_rows = std::min(kPanelRows, w.n_rows - p * kPanelRows);
  alignas(32) float sums[kX][kPanelRows] = {};
  for (int b = 0; b < kX && w.first_group > 0; ++b) {
    std::copy_n(y + (i + b) * ld_y + p * kPanelRows, n_rows, sums[b]);
  }
  for (int64_t g = 0; g < w.n_groups; ++g, scales += kPanelRows) {
    const int64_t place = first + g;
    const int8_t* columns_at = x.levels + i * x.stride + (w.first_group + g) * x.group;
    __m256i dot[kX][2];
    for (auto& halves : dot) halves[0] = halves[1] = _mm256_setzero_si256();
    for (int64_t j = 0; j < x.group; j += 4, levels += 64) {
      __m256i level[2], magnitude[2];
      for (int h = 0; h < 2; ++h) {
        level[h] = _mm256_xor_si256(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(levels + 32 * h)), zero);
        magnitude[h] = _mm256_abs_epi8(level[h]);
      }
      for (int b = 0; b < kX; ++b) {
        int32_t quad;
        std::memcpy(&quad, columns_at + b * x.stride + j, 4);
        const __m256i columns = _mm256_set1_epi32(quad);
        for (int h = 0; h < 2; ++h) {
          const __m256i pairs =
              _mm256_maddubs_epi16(magnitude[h], _mm256_sign_epi8(columns, level[h]));
          dot[b][h] = _mm256_add_epi32(dot[b][h], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
    for (int b = 0; b < kX; ++b) {
      const __m256 scale_x = _mm256_set1_ps(x.scales[place + b * x.n_groups]);
      for (int h = 0; h < 2; ++h) {
        const __m256 both = _mm256_mul_ps(_mm256_loadu_ps(scales + 8 * h), scale_x);
        const __m256 sum = _mm256_load_ps(sums[b] + 8 * h);
        _mm256_store_ps(sums[b] + 8 * h, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[b][h]), both, sum));
      }
    }
  }
  for (int b = 0; b < kX; ++b) std::copy_n(sums[b], n_rows, y + (i + b) * ld_y + p * kPanelRows);
}

void panel_dot(const Panels& w, const Int8Rows& x, float* y, int64_t ld_y) {
  const int64_t n_panels = (w.n_rows + kPanelRows - 1) / kPanelRows;
  for (int64_t p = 0; p < n_panels; ++p) {
    int64_t i = 0;
    for (; i + kBlock <= x.n; i += kBlock) dot_block<kBlock>(w, x, p, i, y, ld_y);
    for (; i < x.n; ++i) dot_block<1>(w, x, p, i, y, ld_y);
  }
}

}  // namespace

void fill_panels_avx2(KernelTable& table) { table.panel_dot = panel_dot; }

}  // namespace quern
