// SPDX-License-Identifier: Apache-2.0
// Search: 16 overlaps at a time; their states for one b stand side by side, and the costs they come
// from are 16 >> step_bits neighbours, each repeated.
// Decoder: the 16 windows of a tile's row are cut out of its bytes by one vpermb and one variable
// shift, and hashed in 32-bit lanes.
#include <cstring>

#include "codecs/qtip.h"
#include "kernels/intrinsics.h"

namespace quern {
namespace {

// best[first + (lane >> kShift)] for 16 lanes; first is a multiple of 16 >> kShift. kShift 4: all
// lanes the same.
template <int kShift>
__m512 repeat(const float* best, __m512i index) {
  if constexpr (kShift == 1) {
    const __m256 values = _mm256_load_ps(best);
    return _mm512_permutexvar_ps(index, _mm512_castps256_ps512(values));
  } else if constexpr (kShift == 2) {
    return _mm512_permutexvar_ps(index, _mm512_castps128_ps512(_mm_load_ps(best)));
  } else if constexpr (kShift == 3) {
    double pair;
    std::memcpy(&pair, best, 8);
    return _mm512_permutexvar_ps(index, _mm512_castps128_ps512(_mm_castpd_ps(_mm_set_sd(pair))));
  } else {
    return _mm512_set1_ps(*best);
  }
}

template <int kShift, int kWeights>
void step_of(const QtipTrellis& trellis, const QtipStep& step) {
  const int64_t n_overlaps = trellis.n_overlaps();
  const int n_branches = 1 << trellis.step_bits;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_srli_epi32(lane, kShift);
  const float* second = step.codewords + trellis.n_states();
  const __m512 target = _mm512_set1_ps(step.target[0]);
  const __m512 root = _mm512_set1_ps(step.root_weight[0]);
  const __m512 target2 = _mm512_set1_ps(step.target[kWeights - 1]);
  const __m512 root2 = _mm512_set1_ps(step.root_weight[kWeights - 1]);
  for (int64_t e = 0; e < n_overlaps; e += 16) {
    __m512 least = _mm512_setzero_ps();
    __m512i back = _mm512_setzero_si512();
    for (int b = 0; b < n_branches; ++b) {
      const int64_t state = e + b * n_overlaps;
      __m512 cost = repeat<kShift>(step.best + (state >> trellis.step_bits), index);
      const __m512 f = _mm512_loadu_ps(step.codewords + state);
      const __m512 difference = _mm512_fnmadd_ps(root, f, target);
      cost = _mm512_fmadd_ps(difference, difference, cost);
      if constexpr (kWeights == 2) {
        const __m512 difference2 =
            _mm512_fnmadd_ps(root2, _mm512_loadu_ps(second + state), target2);
        cost = _mm512_fmadd_ps(difference2, difference2, cost);
      }
      if (b == 0) {
        least = cost;
        continue;
      }
      const __mmask16 is_less = _mm512_cmp_ps_mask(cost, least, _CMP_LT_OQ);
      least = _mm512_mask_mov_ps(least, is_less, cost);
      back = _mm512_mask_mov_epi32(back, is_less, _mm512_set1_epi32(b));
    }
    _mm512_store_ps(step.next + e, least);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(step.back + e), _mm512_cvtepi32_epi8(back));
  }
}

__m512i byte_sums(__m512i u) {
  return _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, _mm512_set1_epi8(1));
}

__m512 to_half_and_back(__m512 x) {
  return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

__m512 half_sums(__m512i u) {
  u = _mm512_xor_si512(_mm512_and_si512(u, _mm512_set1_epi32(static_cast<int>(0x8fff8fffu))),
                       _mm512_set1_epi32(0x3b603b60));
  const __m512 high = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16)));
  return to_half_and_back(_mm512_add_ps(high, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(u))));
}

// The weights of 16 hashes.
template <QtipCode kCode>
__m512 values_of(__m512i u) {
  if constexpr (kCode == QtipCode::kMad1) {
    const __m512i centred = _mm512_sub_epi32(byte_sums(u), _mm512_set1_epi32(510));
    return _mm512_div_ps(_mm512_cvtepi32_ps(centred), _mm512_set1_ps(147.800537f));
  } else if constexpr (kCode == QtipCode::kInst3 || kCode == QtipCode::kMcg) {
    return half_sums(u);
  } else if constexpr (kCode == QtipCode::kMul1) {
    const __m512i sum = _mm512_add_epi32(byte_sums(u), _mm512_set1_epi32(1024));
    const __m512 step = _mm512_cvtph_ps(_mm256_set1_epi16(0x1eee));
    const __m512 offset = _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(0xc931)));
    return to_half_and_back(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, offset));
  } else {
    const __m512i sum = _mm512_add_epi32(byte_sums(u), _mm512_set1_epi32(3));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_srli_epi32(sum, 2), _mm512_set1_epi32(128)));
  }
}

// Eight pairs, from the states in the low eight lanes.
__m512 pairs_of(__m512i state, const uint8_t* table) {
  const __m256i x = _mm512_castsi512_si256(state);
  const __m256i h = _mm256_add_epi32(_mm256_mullo_epi32(x, x), x);
  const __m256i index = _mm256_and_si256(_mm256_srli_epi32(h, 6), _mm256_set1_epi32(511));
  const __m256i pair = _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), index, 4);
  return _mm512_cvtph_ps(_mm256_xor_si256(pair, _mm256_and_si256(h, _mm256_set1_epi32(0x8000))));
}

template <QtipCode kCode>
void decode_row_of(const QtipRow& row, float* dst) {
  alignas(64) uint8_t spread[64];
  alignas(64) uint32_t shift[16], factor[16], addend[16];
  for (int i = 0; i < 16; ++i) {
    // Two weights of a step are neighbouring lanes; of hyb eight lanes are steps, the rest read
    // some byte. vpermb takes 4 index bits or more as they are.
    const int step = kCode == QtipCode::kHyb ? i : i / row.step_weights;
    const QtipHash hash = qtip_hash(kCode, i % row.step_weights);
    shift[i] = static_cast<uint32_t>(step * row.step_bits % 8);
    factor[i] = hash.factor;
    addend[i] = hash.addend;
    for (int k = 0; k < 4; ++k) {
      spread[4 * i + k] = static_cast<uint8_t>((step * row.step_bits / 8 + k) & 15);
    }
  }
  const __m512i factors = _mm512_load_si512(factor), addends = _mm512_load_si512(addend);
  const __m512i index = _mm512_load_si512(spread), shifts = _mm512_load_si512(shift);
  const __m512i mask = _mm512_set1_epi32((1 << row.state_bits) - 1);
  const __m512 scale = _mm512_set1_ps(row.scale);
  const int row_bytes = qtip_row_bytes(row.step_weights, row.step_bits);
  const bool is_last = row.row == kQtipTile - 1;
  const int present =
      row_bytes + (is_last ? 0 : 2);  // a row and the two bytes its windows reach into
  const auto load = static_cast<__mmask16>((1u << present) - 1);
  alignas(16) int8_t places[16];
  for (int i = 0; i < 16; ++i) places[i] = static_cast<int8_t>(i - row_bytes);
  const __m128i place = _mm_load_si128(reinterpret_cast<const __m128i*>(places));
  const __m128i around =
      _mm_mask_set1_epi8(place, _mm_cmpgt_epi8_mask(place, _mm_set1_epi8(1)), -1);
  const uint8_t* tile = row.tiles;
  for (int64_t j = 0; j < row.n; j += kQtipTile, tile += kQtipTile * row_bytes) {
    __m128i bytes = _mm_maskz_loadu_epi8(load, tile + row.row * row_bytes);
    if (is_last) {
      uint16_t head;
      std::memcpy(&head, tile, 2);
      bytes = _mm_or_si128(bytes, _mm_shuffle_epi8(_mm_cvtsi32_si128(head), around));
    }
    const __m512i all = _mm512_permutexvar_epi8(index, _mm512_castsi128_si512(bytes));
    const __m512i states = _mm512_and_si512(_mm512_srlv_epi32(all, shifts), mask);
    __m512 values;
    if constexpr (kCode == QtipCode::kHyb) {
      values = pairs_of(states, row.table);
    } else {
      constexpr bool kAdds = kCode == QtipCode::kMad1 || kCode == QtipCode::kInst3;
      __m512i u = _mm512_mullo_epi32(states, factors);
      if constexpr (kAdds) u = _mm512_add_epi32(u, addends);
      values = values_of<kCode>(u);
    }
    values = _mm512_mul_ps(scale, values);
    const int64_t left = row.n - j;
    const auto in_row = static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1);
    _mm512_mask_storeu_ps(dst + j, in_row, values);
  }
}

}  // namespace

void qtip_step_avx512(const QtipTrellis& trellis, const QtipStep& step) {
  if (trellis.step_weights == 1) {
    switch (trellis.step_bits) {
      case 1:
        return step_of<1, 1>(trellis, step);
      case 2:
        return step_of<2, 1>(trellis, step);
      case 3:
        return step_of<3, 1>(trellis, step);
      default:
        return step_of<4, 1>(trellis, step);
    }
  }
  switch (trellis.step_bits) {
    case 2:
      return step_of<2, 2>(trellis, step);
    case 3:
      return step_of<3, 2>(trellis, step);
    default:
      return step_of<4, 2>(trellis, step);
  }
}

void qtip_decode_row_avx512(const QtipRow& row, float* dst) {
  switch (row.code) {
    case QtipCode::kMad1:
      return decode_row_of<QtipCode::kMad1>(row, dst);
    case QtipCode::kInst3:
      return decode_row_of<QtipCode::kInst3>(row, dst);
    case QtipCode::kMcg:
      return decode_row_of<QtipCode::kMcg>(row, dst);
    case QtipCode::kMul1:
      return decode_row_of<QtipCode::kMul1>(row, dst);
    case QtipCode::kMul1Int8:
      return decode_row_of<QtipCode::kMul1Int8>(row, dst);
    case QtipCode::kHyb:
      return decode_row_of<QtipCode::kHyb>(row, dst);
  }
}

}  // namespace quern
