// SPDX-License-Identifier: Apache-2.0
// 64 columns of a row are cut out of its stream by a byte shuffle and a multishift, looked up, and
// turned with those of 15 other rows; or codes are turned before.
#include <algorithm>
#include <numeric>

#include "base/checked.h"
#include "codecs/bit_stream.h"
#include "codecs/byte_table_avx512.h"
#include "codecs/code_panels.h"
#include "codecs/panel_bytes_avx512.h"
#include "kernels/transpose_avx512.h"

namespace quern {
namespace {

// Fields of one width, not masked: the bits above a field are those of its neighbours.
class Fields {
 public:
  explicit Fields(int bits) : bits_(bits) {
    alignas(64) uint8_t bytes[64], shifts[64];
    for (int i = 0; i < 64; ++i) {
      bytes[i] = static_cast<uint8_t>(i / 8 * bits + i % 8);
      shifts[i] = static_cast<uint8_t>(i % 8 * bits);
    }
    bytes_ = _mm512_load_si512(bytes);
    shifts_ = _mm512_load_si512(shifts);
  }
  // Of `left` bytes from the first field's on.
  __m512i read(const uint8_t* from, int64_t left) const {
    const __m512i raw =
        left >= 64 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8((1ull << left) - 1, from);
    return _mm512_multishift_epi64_epi8(shifts_, _mm512_permutexvar_epi8(bytes_, raw));
  }
  int64_t bytes_to(int64_t column) const { return column / 8 * bits_; }

 private:
  int64_t bits_;
  __m512i bytes_, shifts_;
};

// The zeros of 64 columns from j on, of a row whose groups are of at least 16 columns.
inline __m512i zeros_at(const uint8_t* zeros, int64_t j, int64_t group, int64_t n_in) {
  if (group % 64 == 0 || j / group == (j + 63) / group) {
    return _mm512_set1_epi8(static_cast<char>(zeros[j / group]));
  }
  __m128i parts[4];
  for (int64_t q = 0; q < 4; ++q) {
    const int64_t column = std::min(j + 16 * q, n_in - 1);
    parts[q] = _mm_set1_epi8(static_cast<char>(zeros[column / group]));
  }
  __m512i all = _mm512_castsi128_si512(parts[0]);
  all = _mm512_inserti32x4(all, parts[1], 1);
  all = _mm512_inserti32x4(all, parts[2], 2);
  return _mm512_inserti32x4(all, parts[3], 3);
}

struct Identity {
  __m512i operator()(__m512i index) const { return index; }
};

template <class Table, bool kSplit>
void write_panel(const Table& table, const CodeRows& codes, int64_t row, int64_t n_rows,
                 int64_t col, int64_t n_cols, int64_t panel_group, uint8_t* panel) {
  const Fields low(codes.low_bits), high(kSplit ? codes.high_bits : 1);
  const __m512i low_mask = _mm512_set1_epi8(static_cast<char>((1 << codes.low_bits) - 1));
  const int64_t low_bytes = stream_bytes(codes.n_in, codes.low_bits);
  const int64_t high_bytes = kSplit ? stream_bytes(codes.n_in, codes.high_bits) : 0;
  const int64_t group = std::min(codes.group, codes.n_in);
  const int64_t n_groups = codes.zeros == nullptr ? 0 : ceil_div(codes.n_in, group);
  const int64_t n_quads = round_up(n_cols, panel_group) / 4;
  for (int64_t q = 0; q < n_quads; q += 16) {
    const int64_t j = col + 4 * q;
    __m512i rows[16];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const int64_t i = row + std::min(r, n_rows - 1);
      __m512i code = _mm512_setzero_si512();
      if (j < codes.n_in) {
        const int64_t at = low.bytes_to(j);
        prefetch_next_panel(codes.low + i * low_bytes + at, low_bytes);
        code = low.read(codes.low + i * low_bytes + at, low_bytes - at);
        if constexpr (kSplit) {
          const int64_t above = high.bytes_to(j);
          const __m512i upper = high.read(codes.high + i * high_bytes + above, high_bytes - above);
          // The bits that the shift brings into a byte from below are not of `low_mask`'s other
          // side.
          code = _mm512_ternarylogic_epi32(
              low_mask, code,
              _mm512_slli_epi16(_mm512_and_si512(upper, _mm512_set1_epi8(static_cast<char>(
                                                            (1 << codes.high_bits) - 1))),
                                static_cast<unsigned>(codes.low_bits)),
              0xca);  // low_mask ? code : upper
        }
      }
      rows[r] = table(code);
      if (codes.zeros != nullptr && j < codes.n_in) {
        rows[r] =
            _mm512_sub_epi8(rows[r], zeros_at(codes.zeros + i * n_groups, j, group, codes.n_in));
      }
    }
    transpose_16x16(rows);
    const int64_t n = std::min<int64_t>(16, n_quads - q);
    for (int64_t k = 0; k < n; ++k) _mm512_storeu_si512(panel + (q + k) * 64, rows[k]);
  }
}

// Bits of columns 4 v to 4 v + 3 of a 32-bit lane of fields of `bits`.
constexpr PanelBytes shifts_of(int v, int bits) {
  return panel_bytes([=](int i) { return i % 8 / 4 * 32 + (4 * v + i % 4) * bits; });
}
template <int kBits>
constexpr PanelBytes kShifts[4] = {shifts_of(0, kBits), shifts_of(1, kBits), shifts_of(2, kBits),
                                   shifts_of(3, kBits)};

// The zeros of a group, each in the four bytes of its row.
inline __m512i zeros_of_rows(const uint8_t* zeros, int64_t stride, int64_t n_rows) {
  alignas(16) uint8_t bytes[kPanelRows];
  for (int64_t r = 0; r < kPanelRows; ++r) bytes[r] = zeros[std::min(r, n_rows - 1) * stride];
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<__m128i*>(bytes)));
  return _mm512_mullo_epi32(wide, _mm512_set1_epi32(0x01010101));
}

// Fields of 2 or 4 bits fill 32-bit lanes: they are turned before they become bytes, which is half
// the work or a quarter of it.
template <int kBits>
void write_turned(const __m512i& table, const CodeRows& codes, int64_t row, int64_t n_rows,
                  int64_t col, int64_t n_cols, uint8_t* panel) {
  constexpr int64_t kQuads = 8 / kBits;  // of a lane
  const int64_t stride = stream_bytes(codes.n_in, kBits), n_bytes = stream_bytes(n_cols, kBits);
  const int64_t group = std::min(codes.group, codes.n_in), n_groups = ceil_div(codes.n_in, group);
  const int64_t n_quads = ceil_div<int64_t>(n_cols, 4);
  const uint8_t* from = codes.low + row * stride + col * kBits / 8;
  const uint8_t* zeros = codes.zeros == nullptr ? nullptr : codes.zeros + row * n_groups;
  int64_t group_at = col / group, group_end = 0;
  __m512i zero = _mm512_setzero_si512();
  for (int64_t b = 0; b < n_bytes; b += 64) {
    const __mmask64 present = ~uint64_t{0} >> (64 - std::min<int64_t>(64, n_bytes - b));
    __m512i lanes[16];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const uint8_t* bytes = from + std::min(r, n_rows - 1) * stride + b;
      prefetch_next_panel(bytes, stride);
      lanes[r] = _mm512_maskz_loadu_epi8(present, bytes);
    }
    transpose_16x16(lanes);
    const int64_t n = std::min(16 * kQuads, n_quads - b * 2 / kBits);
    for (int64_t q = 0; q < n; ++q, panel += 64) {
      const int64_t column = (b * 2 / kBits + q) * 4;
      if (zeros != nullptr && column >= group_end) {
        zero = zeros_of_rows(zeros + group_at, n_groups, n_rows);
        group_end = (++group_at) * group - col;
      }
      const __m512i code =
          _mm512_multishift_epi64_epi8(kShifts<kBits>[q % kQuads].load(), lanes[q / kQuads]);
      _mm512_storeu_si512(panel, _mm512_sub_epi8(_mm512_permutexvar_epi8(code, table), zero));
    }
  }
}

}  // namespace

void code_panel_avx512(const CodeRows& codes, int64_t row, int64_t n_rows, int64_t col,
                       int64_t n_cols, int64_t panel_group, uint8_t* panel) {
  const int bits = codes.low_bits + codes.high_bits;
  // Tables are repeated, so that bits above a code do not matter.
  alignas(64) uint8_t levels[256];
  for (unsigned i = 0; i < std::max(64u, 1u << bits); ++i) {
    levels[i] = codes.levels[i & ((1u << bits) - 1)];
  }
  bool is_identity = bits == 8;
  for (unsigned i = 0; is_identity && i < 256; ++i) is_identity = levels[i] == i;
  if (codes.high_bits == 0 && (bits == 2 || bits == 4)) {
    const __m512i table = _mm512_load_si512(levels);
    return (bits == 2 ? write_turned<2> : write_turned<4>)(table, codes, row, n_rows, col, n_cols,
                                                           panel);
  }
  const auto write = [&](const auto& table) {
    if (codes.high_bits > 0) {
      write_panel<std::decay_t<decltype(table)>, true>(table, codes, row, n_rows, col, n_cols,
                                                       panel_group, panel);
    } else {
      write_panel<std::decay_t<decltype(table)>, false>(table, codes, row, n_rows, col, n_cols,
                                                        panel_group, panel);
    }
  };
  if (is_identity) return write(Identity());
  if (bits <= 6) return write(ByteTable<6>(levels));
  if (bits == 7) return write(ByteTable<7>(levels));
  write(ByteTable<8>(levels));
}

}  // namespace quern
