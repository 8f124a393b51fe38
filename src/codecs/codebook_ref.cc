// SPDX-License-Identifier: Apache-2.0
// The scalar references of the decoders.
#include "codecs/bit_stream.h"
#include "codecs/codebook.h"
#include "kernels/panels.h"

namespace quern {

void codebook_decode_ref(const CodebookRow& row, float* dst) {
  for (int64_t i = 0; i < row.n; ++i) {
    const unsigned code = get_code(row.codes, i / row.dim, row.width);
    dst[i] = row.scale * static_cast<float>(row.table[code * row.dim + i % row.dim]);
  }
}

void codebook_panel_ref(const CodebookPanel& rows, uint8_t* levels) {
  for (int64_t r = 0; r < rows.n_rows; ++r) {
    for (int64_t j = 0; j < rows.n_cols; ++j) {
      const int64_t point = get_code(rows.codes + r * rows.stride, j / rows.dim, rows.width);
      levels[(j / 4 * kPanelRows + r) * 4 + j % 4] =
          static_cast<uint8_t>(kPanelZero + rows.tables[r][point * rows.dim + j % rows.dim]);
    }
  }
}

}  // namespace quern
