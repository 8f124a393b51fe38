// SPDX-License-Identifier: Apache-2.0
// Codes of one to three bits, each bit in a plane of its own, and a table of levels per group: what
// binary, ternary, billm and dual share. The terms that papers add up under masks meet in the
// table:
//     w_hat = level[code],   code = bit of plane 0 + 2 * bit of plane 1 + ...
// A plane is a stream (bit_stream.h) of a bit per column: [n_out, ceil(n_in / 8)], or [1, ...]
// where all rows share it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "codecs/codec.h"

namespace quern {

constexpr int kMostBitPlanes = 3;
constexpr int kMostLevels = 1 << kMostBitPlanes;

// One row: dst[i] = levels[i / group][code_i], times factors[i] if there are factors, i < n.
struct BitPlaneRow {
  const uint8_t* planes[kMostBitPlanes];  // streams of n bits, the first `n_planes` of them
  int n_planes;
  const float* levels;   // [groups, 2^n_planes]
  const float* factors;  // [n] or null
  int64_t n, group;
};

void bit_planes_decode_row_ref(const BitPlaneRow& row, float* dst);
// Need group % 16 == 0 or group >= n.
void bit_planes_decode_row_avx2(const BitPlaneRow& row, float* dst);
void bit_planes_decode_row_avx512(const BitPlaneRow& row, float* dst);

// Columns of 16 rows in the integer form (kernels/panels.h).
struct BitPanel {
  // Of the first row, from the byte of the first column on; the third is that of all rows.
  const uint8_t* planes[kMostBitPlanes];
  int n_planes;
  int64_t stride;  // bytes from a row to the next
  const uint8_t*
      tables;  // [groups, 2 if there is a third plane, 16, 4]: levels of the low two bits
  int64_t n_rows, n_cols;
  int64_t group;  // columns of a table, a multiple of 16 or at least n_cols
};
void bit_panel_ref(const BitPanel& rows, uint8_t* levels);
void bit_panel_avx512(const BitPanel& rows, uint8_t* levels);

// The first planes of a codec, and what is done with them. Planes follow one another from place 0.
class BitPlanes {
 public:
  // `group`: columns that share a table, 0: the row. With `has_columns` one more plane, the last,
  // has a bit per column that all rows share; it is the codec's own to write, and the highest bit
  // of the code.
  BitPlanes(std::vector<std::string_view> names, bool has_columns, int64_t group)
      : names_(std::move(names)), has_columns_(has_columns), group_(group) {}

  int64_t group_cols(int64_t n_in) const;
  int64_t n_groups(int64_t n_in) const;
  // These planes and then `more`, or why they cannot be.
  Result<std::vector<PlaneSpec>> planes(std::string_view spec, int64_t n_out, int64_t n_in,
                                        std::span<const PlaneSpec> more) const;

  // Whether the bit of the shared plane is set.
  bool column_bit(const CodesView& codes, int64_t col) const;
  void put_column_bit(const MutableCodes& codes, int64_t col, bool is_set) const;

  // Fills in numbers of groups [first, first + n) of a row: levels [n, 2 ^ number of planes], or a
  // scale for each.
  using NumbersOf =
      std::function<void(const CodesView&, int64_t row, int64_t first, int64_t n, float* levels)>;
  // Codec::encode: the nearest level that the bit of the column allows, of several the first; a
  // number that is not one counts as 0. `factors` [w.cols], not negative, may be empty.
  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              const NumbersOf& levels_of, std::span<const float> factors,
              MatrixView<float> w_hat) const;
  // Codec::decode.
  void decode(const CodesView& codes, int64_t row, int64_t n_rows, const NumbersOf& levels_of,
              std::span<const float> factors, float* dst) const;

  // Whether there is an integer form of such codes without factors, of which only a third plane may
  // be shared: groups have to be multiples of 16 columns.
  bool has_panels(int64_t n_in) const;
  PanelTile panel_tile(int64_t n_in) const;
  // Codec::decode_panels; levels are rounded to 64ths of the largest of their group,
  void decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, const NumbersOf& levels_of, const MutablePanels& out) const;
  // or are, of two planes at most, the whole numbers `levels` times the scale of the group.
  void decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, std::array<int8_t, 4> levels, const NumbersOf& scales_of,
                     const MutablePanels& out) const;

 private:
  void write_panel(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col, int64_t n_cols,
                   const uint8_t* tables, int64_t group, uint8_t* levels) const;
  int row_planes() const { return static_cast<int>(names_.size()) - (has_columns_ ? 1 : 0); }

  std::vector<std::string_view> names_;
  bool has_columns_;
  int64_t group_;
};

}  // namespace quern
