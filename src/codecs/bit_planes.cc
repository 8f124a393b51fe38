// SPDX-License-Identifier: Apache-2.0
#include "codecs/bit_planes.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/checked.h"
#include "codecs/bit_stream.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 56;

unsigned nearest_level(float w, const float* levels, int n) {
  const float x = std::isfinite(w) ? w : 0;
  int best = 0;
  for (int c = 1; c < n; ++c) {
    if (std::abs(x - levels[c]) < std::abs(x - levels[best])) best = c;
  }
  return static_cast<unsigned>(best);
}

uint8_t* stream(const MutableCodes& codes, int plane, int64_t row) {
  return reinterpret_cast<uint8_t*>(codes.planes[static_cast<size_t>(plane)]) +
         row * stream_bytes(codes.n_in, 1);
}
const uint8_t* stream(const CodesView& codes, int plane, int64_t row) {
  return reinterpret_cast<const uint8_t*>(codes.planes[static_cast<size_t>(plane)]) +
         row * stream_bytes(codes.n_in, 1);
}

}  // namespace

void bit_planes_decode_row_ref(const BitPlaneRow& row, float* dst) {
  for (int64_t i = 0; i < row.n; ++i) {
    unsigned code = 0;
    for (int p = 0; p < row.n_planes; ++p) code |= get_code(row.planes[p], i, 1) << p;
    dst[i] = row.levels[(i / row.group << row.n_planes) + code];
    if (row.factors != nullptr) dst[i] *= row.factors[i];
  }
}

int64_t BitPlanes::group_cols(int64_t n_in) const {
  return std::max<int64_t>(1, group_ == 0 ? n_in : std::min(group_, n_in));
}

int64_t BitPlanes::n_groups(int64_t n_in) const { return ceil_div(n_in, group_cols(n_in)); }

Result<std::vector<PlaneSpec>> BitPlanes::planes(std::string_view spec, int64_t n_out, int64_t n_in,
                                                 std::span<const PlaneSpec> more) const {
  std::vector<PlaneSpec> planes;
  for (const std::string_view name : names_) {
    const bool is_shared = has_columns_ && planes.size() + 1 == names_.size();
    planes.push_back(
        {std::string(name), DType::kU8, {is_shared ? 1 : n_out, stream_bytes(n_in, 1)}});
  }
  planes.insert(planes.end(), more.begin(), more.end());
  for (const PlaneSpec& plane : planes) {
    if (element_count(plane.shape).value_or(kMostElements + 1) > kMostElements) {
      return error("{}: a matrix of {} x {} has too many groups", spec, n_out, n_in);
    }
  }
  return planes;
}

bool BitPlanes::column_bit(const CodesView& codes, int64_t col) const {
  return get_code(stream(codes, row_planes(), 0), col, 1) != 0;
}

void BitPlanes::put_column_bit(const MutableCodes& codes, int64_t col, bool is_set) const {
  put_code(stream(codes, row_planes(), 0), col, 1, is_set ? 1 : 0);
}

void BitPlanes::encode(MatrixView<const float> w, int64_t row, int64_t col,
                       const MutableCodes& codes, const NumbersOf& levels_of,
                       std::span<const float> factors, MatrixView<float> w_hat) const {
  const int64_t group = group_cols(codes.n_in);
  const int n_planes = row_planes(), n_levels = 1 << n_planes;
  const CodesView view = codes;
  for (int64_t i = 0; i < w.rows; ++i) {
    float levels[kMostLevels], scaled[kMostLevels];
    for (int64_t j = 0; j < w.cols; ++j) {
      const int64_t at = col + j;
      if (j == 0 || at % group == 0) levels_of(view, row + i, at / group, 1, levels);
      const float* allowed = levels + (has_columns_ && column_bit(view, at) ? n_levels : 0);
      if (!factors.empty()) {
        for (int c = 0; c < n_levels; ++c) scaled[c] = allowed[c] * factors[static_cast<size_t>(j)];
        allowed = scaled;
      }
      const unsigned code = nearest_level(w(i, j), allowed, n_levels);
      for (int p = 0; p < n_planes; ++p) put_code(stream(codes, p, row + i), at, 1, code >> p & 1);
      w_hat(i, j) = allowed[code];
    }
  }
}

void BitPlanes::decode(const CodesView& codes, int64_t row, int64_t n_rows,
                       const NumbersOf& levels_of, std::span<const float> factors,
                       float* dst) const {
  const int64_t group = group_cols(codes.n_in), groups = n_groups(codes.n_in);
  const int n_planes = static_cast<int>(names_.size());
  const bool whole_vectors = group % 16 == 0 || group >= codes.n_in;
  const Isa isa = kernels().isa;
  const auto decode_row = whole_vectors && isa == Isa::kAvx512 ? bit_planes_decode_row_avx512
                          : whole_vectors && isa == Isa::kAvx2 ? bit_planes_decode_row_avx2
                                                               : bit_planes_decode_row_ref;
  std::vector<float> levels(static_cast<size_t>(groups << n_planes));
  for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
    levels_of(codes, i, 0, groups, levels.data());
    BitPlaneRow part{
        {}, n_planes, levels.data(), factors.empty() ? nullptr : factors.data(), codes.n_in, group};
    for (int p = 0; p < n_planes; ++p) {
      part.planes[p] = stream(codes, p, has_columns_ && p == row_planes() ? 0 : i);
    }
    decode_row(part, dst);
  }
}

}  // namespace quern
