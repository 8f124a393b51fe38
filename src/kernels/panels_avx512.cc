// SPDX-License-Identifier: Apache-2.0
// Panels against int8 rows by VNNI: a lane is a row of the panel, four columns of one row of
// activations are broadcast to all of them, and a group's dot never leaves its register.
#include <algorithm>
#include <cstring>

#include "kernels/intrinsics.h"
#include "kernels/pack_avx512.h"
#include "kernels/panels_round.h"
#include "kernels/round_avx512.h"
#include "kernels/tables.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

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

void quantize_groups(const float* x, int64_t k, int64_t group, int8_t* levels, float* scales,
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

// In each lane the largest magnitude of those of a whole group, a multiple of 16 columns.
inline __m512i largest_of(const float* x, int64_t group) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t j = 0; j < group; j += 16) {
    const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(x + j));
    largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, magnitude));
  }
  return largest;
}

// Writes the levels of a whole group, a multiple of 64 columns; their sum over all lanes.
inline __m512i write_levels(const float* x, int64_t group, float to_levels, int8_t* levels) {
  const __m512 factor = _mm512_set1_ps(to_levels);
  const auto levels_of = [&](int64_t j) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + j), factor));
  };
  __m512i sum = _mm512_setzero_si512();
  for (int64_t j = 0; j < group; j += 64) {
    __m512i bytes = _mm512_setzero_si512();
    if (to_levels != 0) {
      bytes = pack_bytes(levels_of(j), levels_of(j + 16), levels_of(j + 32), levels_of(j + 48));
    }
    sum = add_bytes(sum, bytes);
    _mm512_storeu_si512(levels + j, bytes);
  }
  return sum;
}

// n <= 16 whole groups, of a multiple of 64 columns each.
void quantize_whole_groups(const float* x, int n, int64_t group, int8_t* levels, float* scales,
                           int32_t* offsets) {
  constexpr int kFewGroups = 2;  // that cost less one by one
  if (n <= kFewGroups) {
    for (int g = 0; g < n; ++g) {
      const float* first = x + g * group;
      const GroupRounding rounding(_mm512_reduce_max_epu32(largest_of(first, group)));
      const __m512i sum = write_levels(first, group, rounding.to_levels, levels + g * group);
      scales[g] = rounding.scale;
      offsets[g] = -kPanelZero * _mm512_reduce_add_epi32(sum);
    }
    return;
  }
  __m512i each[16] = {};
  alignas(64) float to_levels[16];
  for (int g = 0; g < n; ++g) each[g] = largest_of(x + g * group, group);
  const GroupRoundings roundings(largest_of_each(each));
  _mm512_store_ps(to_levels, roundings.to_levels);
  for (int g = 0; g < n; ++g) {
    each[g] = write_levels(x + g * group, group, to_levels[g], levels + g * group);
  }
  const __m512i offset = _mm512_mullo_epi32(sum_of_each(each), _mm512_set1_epi32(-kPanelZero));
  _mm512_mask_storeu_ps(scales, first_lanes(n), roundings.scales);
  _mm512_mask_storeu_epi32(offsets, first_lanes(n), offset);
}

void quantize_row(const float* x, int64_t k, int64_t group, int8_t* levels, float* scales,
                  int32_t* offsets) {
  while (group % 64 == 0 && group <= k) {
    const int n = static_cast<int>(std::min<int64_t>(16, k / group));
    quantize_whole_groups(x, n, group, levels, scales, offsets);
    x += n * group;
    k -= n * group;
    levels += n * group;
    scales += n;
    offsets += n;
  }
  quantize_groups(x, k, group, levels, scales, offsets);
}

// A group of columns from j0 on; with kIsWhole all of them are there.
template <bool kIsWhole>
void quantize_group(const float* w, int64_t n_rows, int64_t k, int64_t j0, int64_t group,
                    uint8_t* levels, float* scales) {
  const __m512i zero = _mm512_set1_epi8(static_cast<char>(kPanelZero));
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const auto load = [&](const float* x, int64_t j) {
    return kIsWhole ? _mm512_loadu_ps(x + j) : load_columns(x, j, k);
  };
  __m512i most[16] = {};
  alignas(64) float to_levels[16];
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t j = j0; j < j0 + group; j += 16) {
      const __m512i bits = _mm512_castps_si512(load(w + r * k, j));
      most[r] = _mm512_max_epu32(most[r], _mm512_and_si512(bits, magnitude));
    }
  }
  const GroupRoundings roundings(largest_of_each(most));
  _mm512_storeu_ps(scales, roundings.scales);
  _mm512_store_ps(to_levels, roundings.to_levels);
  for (int64_t j = j0; j < j0 + group; j += 64) {
    __m512i rows[16];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      rows[r] = zero;
      if (r >= n_rows || to_levels[r] == 0) continue;
      const __m512 factor = _mm512_set1_ps(to_levels[r]);
      const auto levels_at = [&](int64_t column) {
        return _mm512_cvtps_epi32(_mm512_mul_ps(load(w + r * k, column), factor));
      };
      const __m512i row =
          pack_bytes(levels_at(j), levels_at(j + 16), levels_at(j + 32), levels_at(j + 48));
      rows[r] = _mm512_xor_si512(row, zero);
    }
    transpose_16x16(rows);
    for (int i = 0; i < 16; ++i, levels += 64) _mm512_storeu_si512(levels, rows[i]);
  }
}

void quantize_panel(const float* w, int64_t n_rows, int64_t k, int64_t group, uint8_t* levels,
                    float* scales) {
  for (int64_t j = 0; j < k; j += group, scales += kPanelRows, levels += group * kPanelRows) {
    (j + group <= k ? quantize_group<true> : quantize_group<false>)(w, n_rows, k, j, group, levels,
                                                                    scales);
  }
}

inline __m512i broadcast_quad(const int8_t* levels) {
  int32_t quad;
  std::memcpy(&quad, levels, 4);
  return _mm512_set1_epi32(quad);
}

// As an instruction of its own: GCC 12 copies and spills the sums around the intrinsic, which makes
// the loop three times slower.
inline void add_products(__m512i levels, __m512i quad, __m512i& sums) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(levels), "v"(quad));
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
      sum[a][b] = w.first_group == 0
                      ? _mm512_setzero_ps()
                      : _mm512_maskz_loadu_ps(mask[a], y + (i + b) * ld_y + (p + a) * kPanelRows);
    }
  }
  for (int64_t g = 0; g < w.n_groups; ++g) {
    const int64_t place = first + g;
    const int8_t* columns = x.levels + i * x.stride + (w.first_group + g) * x.group;
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
          const __m512i quad = broadcast_quad(columns + b * x.stride + j + 4 * c);
          for (int a = 0; a < kW; ++a) {
            add_products(rows[a], quad, dot[c][a][b]);
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
