// SPDX-License-Identifier: Apache-2.0
// Panels against int8 rows by VNNI: a lane is a row of the panel, four columns of one row of
// activations are broadcast to all of them, and a group's dot never leaves its register.
#include <algorithm>
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/panels_round.h"
#include "kernels/tables.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

inline __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1);
}

inline __m512 load_columns(const float* x, int64_t j, int64_t k) {
  return _mm512_maskz_loadu_ps(first_lanes(std::max<int64_t>(0, k - j)), x + j);
}

// Columns [first, first + group) of a row of k.
inline GroupRounding rounding_of(const float* x, int64_t first, int64_t group, int64_t k) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t j = first; j < first + group; j += 16) {
    const __m512i bits = _mm512_castps_si512(load_columns(x, j, k));
    largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, magnitude));
  }
  return GroupRounding(_mm512_reduce_max_epu32(largest));
}

// 16 levels from column j on, as 32-bit integers.
inline __m512i levels_at(const float* x, int64_t j, int64_t k, const GroupRounding& rounding) {
  if (rounding.to_levels == 0) return _mm512_setzero_si512();
  return _mm512_cvtps_epi32(
      _mm512_mul_ps(load_columns(x, j, k), _mm512_set1_ps(rounding.to_levels)));
}

void quantize_row(const float* x, int64_t k, int64_t group, int8_t* levels, float* scales,
                  int32_t* offsets) {
  for (int64_t j0 = 0; j0 < k; j0 += group) {
    const GroupRounding rounding = rounding_of(x, j0, group, k);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t j = j0; j < j0 + group; j += 16, levels += 16) {
      const __m512i level = levels_at(x, j, k, rounding);
      sum = _mm512_add_epi32(sum, level);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(levels), _mm512_cvtepi32_epi8(level));
    }
    *scales++ = rounding.scale;
    *offsets++ = -kPanelZero * _mm512_reduce_add_epi32(sum);
  }
}

void quantize_panel(const float* w, int64_t n_rows, int64_t k, int64_t group, uint8_t* levels,
                    float* scales) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(kPanelZero));
  for (int64_t j0 = 0; j0 < k; j0 += group, scales += kPanelRows) {
    GroupRounding rounding[kPanelRows] = {
        GroupRounding(0), GroupRounding(0), GroupRounding(0), GroupRounding(0),
        GroupRounding(0), GroupRounding(0), GroupRounding(0), GroupRounding(0),
        GroupRounding(0), GroupRounding(0), GroupRounding(0), GroupRounding(0),
        GroupRounding(0), GroupRounding(0), GroupRounding(0), GroupRounding(0)};
    for (int64_t r = 0; r < kPanelRows; ++r) {
      if (r < n_rows) rounding[r] = rounding_of(w + r * k, j0, group, k);
      scales[r] = rounding[r].scale;
    }
    for (int64_t j = j0; j < j0 + group; j += 64) {
      __m512i rows[16];
      for (int64_t r = 0; r < kPanelRows; ++r) {
        rows[r] = zero;
        if (r >= n_rows) continue;
        alignas(64) uint8_t row[64];
        for (int64_t i = 0; i < 64; i += 16) {
          const __m512i level = levels_at(w + r * k, j + i, k, rounding[r]);
          _mm_store_si128(reinterpret_cast<__m128i*>(row + i), _mm512_cvtepi32_epi8(level));
        }
        rows[r] = _mm512_xor_si512(_mm512_load_si512(row), zero);
      }
      transpose_16x16(rows);
      for (int i = 0; i < 16; ++i, levels += 64) _mm512_storeu_si512(levels, rows[i]);
    }
  }
}

inline __m512i broadcast_quad(const int8_t* levels) {
  int32_t quad;
  std::memcpy(&quad, levels, 4);
  return _mm512_set1_epi32(quad);
}

// kX rows of activations from row i on, and kW panels from panel p on. Few pairs take the even and
// the odd quads apart, so that enough products are under way.
template <int kX, int kW>
void dot_block(const Panels& w, const Int8Rows& x, int64_t p, int64_t i, float* y, int64_t ld_y) {
  constexpr int kChains = kX * kW >= 8 ? 1 : 2;
  const uint8_t* levels = w.levels + p * w.levels_stride;
  const float* scales = w.scales + p * w.scales_stride;
  const int64_t first = i * x.n_groups + w.first_group;
  __m512 sum[kW][kX];
  __mmask16 mask[kW];
  for (int a = 0; a < kW; ++a) {
    mask[a] = first_lanes(w.n_rows - (p + a) * kPanelRows);
    for (int b = 0; b < kX; ++b) {
      sum[a][b] = _mm512_maskz_loadu_ps(mask[a], y + (i + b) * ld_y + (p + a) * kPanelRows);
    }
  }
  for (int64_t g = 0; g < w.n_groups; ++g) {
    const int64_t place = first + g;
    const int8_t* columns = x.levels + place * x.group;
    __m512i dot[kChains][kW][kX];
    for (int a = 0; a < kW; ++a) {
      for (int b = 0; b < kX; ++b) {
        dot[0][a][b] = _mm512_set1_epi32(x.offsets[place + b * x.n_groups]);
        if constexpr (kChains > 1) dot[1][a][b] = _mm512_setzero_si512();
      }
    }
    for (int64_t j = 0; j < x.group; j += 4 * kChains) {
      for (int c = 0; c < kChains; ++c) {
        __m512i rows[kW];
        for (int a = 0; a < kW; ++a) {
          rows[a] = _mm512_loadu_si512(levels + a * w.levels_stride + (j + 4 * c) * kPanelRows);
        }
        for (int b = 0; b < kX; ++b) {
          const __m512i quad = broadcast_quad(columns + b * x.n_groups * x.group + j + 4 * c);
          for (int a = 0; a < kW; ++a) {
            dot[c][a][b] = _mm512_dpbusd_epi32(dot[c][a][b], rows[a], quad);
          }
        }
      }
    }
    levels += x.group * kPanelRows;
    for (int a = 0; a < kW; ++a) {
      const __m512 scale = _mm512_loadu_ps(scales + a * w.scales_stride);
      for (int b = 0; b < kX; ++b) {
        __m512i total = dot[0][a][b];
        if constexpr (kChains > 1) total = _mm512_add_epi32(total, dot[1][a][b]);
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[place + b * x.n_groups]));
        sum[a][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), both, sum[a][b]);
      }
    }
    scales += kPanelRows;
  }
  for (int a = 0; a < kW; ++a) {
    for (int b = 0; b < kX; ++b) {
      _mm512_mask_storeu_ps(y + (i + b) * ld_y + (p + a) * kPanelRows, mask[a], sum[a][b]);
    }
  }
}

template <int kX>
void dot_rows(const Panels& w, const Int8Rows& x, int64_t i, float* y, int64_t ld_y) {
  const int64_t n_panels = (w.n_rows + kPanelRows - 1) / kPanelRows;
  int64_t p = 0;
  for (; p + 4 <= n_panels; p += 4) dot_block<kX, 4>(w, x, p, i, y, ld_y);
  for (; p < n_panels; ++p) dot_block<kX, 1>(w, x, p, i, y, ld_y);
}

void panel_dot(const Panels& w, const Int8Rows& x, float* y, int64_t ld_y) {
  int64_t i = 0;
  for (; i + 6 <= x.n; i += 6) dot_rows<6>(w, x, i, y, ld_y);
  for (; i + 3 <= x.n; i += 3) dot_rows<3>(w, x, i, y, ld_y);
  for (; i < x.n; ++i) dot_rows<1>(w, x, i, y, ld_y);
}

}  // namespace

void fill_panels_avx512(KernelTable& table) {
  table.quantize_row = quantize_row;
  table.quantize_panel = quantize_panel;
  table.panel_dot = panel_dot;
}

}  // namespace quern
