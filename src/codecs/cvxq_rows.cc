// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/float_types.h"
#include "codecs/cvxq.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

int64_t cluster_of(const CvxqSize& size, const CodesView& codes, int64_t row) {
  if (size.n_clusters == 1) return 0;
  const int64_t width = size.n_clusters > 256 ? 2 : 1;
  uint16_t index = 0;
  std::memcpy(&index, codes.planes[CvxqRows::kClusters] + row * width, static_cast<size_t>(width));
  return std::min<int64_t>(index, size.n_clusters - 1);
}

CvxqCluster load(const CodesView& codes, int64_t cluster) {
  CvxqCluster loaded;
  int32_t bit = 0;
  for (int64_t j = 0; j < codes.n_in; ++j) {
    const int64_t at = cluster * codes.n_in + j;
    loaded.bit.push_back(bit);
    loaded.depth.push_back(CvxqRows::depth_at(codes, cluster, j));
    loaded.centre.push_back(half_at(codes.planes[CvxqRows::kCentres], at));
    loaded.scale.push_back(half_at(codes.planes[CvxqRows::kScales], at));
    bit += loaded.depth.back();
  }
  loaded.row_bytes = ceil_div<int64_t>(bit, 8);
  return loaded;
}

}  // namespace

int CvxqRows::depth_at(const CodesView& codes, int64_t cluster, int64_t col) {
  const int64_t at = cluster * ceil_div<int64_t>(codes.n_in, 2) + col / 2;
  const int pair = std::to_integer<int>(codes.planes[kDepths][at]);
  return std::min(col % 2 == 0 ? pair & 15 : pair >> 4, kCvxqMostDepth);
}

CvxqRows::CvxqRows(const CvxqSize& size, const CodesView& codes, int64_t row, int64_t n_rows)
    : size_(size), clusters_(static_cast<size_t>(size.n_clusters)) {
  int64_t begin = 0;
  for (int64_t i = 0; i < row + n_rows; ++i) {
    const int64_t index = cluster_of(size, codes, i);
    if (i >= row) {
      CvxqCluster& cluster = clusters_[static_cast<size_t>(index)];
      if (cluster.bit.empty()) cluster = load(codes, index);
      rows_.push_back({index, begin});
    }
    uint32_t length = 0;
    std::memcpy(&length, codes.planes[kLengths] + 4 * index, 4);
    begin += length;
  }
}

void CvxqRows::decode(const CodesView& codes, int64_t first, int64_t n, const CvxqLevels& levels,
                      float* dst) const {
  const auto decode_row =
      kernels().isa == Isa::kAvx512 ? cvxq_decode_row_avx512 : cvxq_decode_row_ref;
  std::vector<uint8_t> padded;  // of rows at the end of the plane
  for (int64_t i = first; i < first + n; ++i, dst += codes.n_in) {
    const CvxqCluster& of_row = cluster(static_cast<size_t>(i));
    const int64_t at = begin(static_cast<size_t>(i)), left = size_.n_bytes - at;
    const auto* stream = reinterpret_cast<const uint8_t*>(codes.planes[kCodes]);
    if (left >= of_row.row_bytes + kCvxqPadding) {
      decode_row(of_row, levels.all(), stream + at, dst);
      continue;
    }
    padded.assign(static_cast<size_t>(of_row.row_bytes + kCvxqPadding), 0);
    const int64_t held = std::clamp<int64_t>(left, 0, of_row.row_bytes);
    if (held > 0) std::memcpy(padded.data(), stream + at, static_cast<size_t>(held));
    decode_row(of_row, levels.all(), padded.data(), dst);
  }
}

void cvxq_decode_row_ref(const CvxqCluster& cluster, const float* levels, const uint8_t* stream,
                         float* dst) {
  for (size_t j = 0; j < cluster.bit.size(); ++j) {
    const int32_t bit = cluster.bit[j], depth = cluster.depth[j];
    const unsigned word = stream[bit / 8] | static_cast<unsigned>(stream[bit / 8 + 1]) << 8;
    const unsigned code = (word >> (bit % 8)) & ((1u << depth) - 1u);
    const float level = levels[cvxq_first_level(depth) + static_cast<int>(code)];
    dst[j] = cluster.centre[j] + cluster.scale[j] * level;
  }
}

}  // namespace quern
