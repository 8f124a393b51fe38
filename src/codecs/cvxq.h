// SPDX-License-Identifier: Apache-2.0
// What cvxq.cc is made of: levels of every depth, and rows of codes whose width changes from column
// to column.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codecs/codec.h"
#include "codecs/scalar_table.h"

namespace quern {

// A cluster of rows: what its columns share, one entry per column.
struct CvxqCluster {
  std::vector<int32_t> bit;    // where the code of a column begins in the stream of a row
  std::vector<int32_t> depth;  // its bits
  std::vector<float> centre, scale;
  int64_t row_bytes = 0;  // of a row's stream
};

// Bytes that may be read past a row's stream, and are zeros.
constexpr int64_t kCvxqPadding = 4;

// The levels of all depths: those of depth b begin at 2^b - 1; that of no bits is 0.
constexpr int kCvxqDepths = 9;  // 0 to 8
constexpr int kCvxqMostDepth = kCvxqDepths - 1;
constexpr int kCvxqAllLevels = (1 << kCvxqDepths) - 1;
inline int cvxq_first_level(int depth) { return (1 << depth) - 1; }

// The search of scale and centre: exponents and shifts from -2 to 2 in eighths.
constexpr int kCvxqSearchSteps = 16;
constexpr double kCvxqSearchStep = 0.125;

class CvxqLevels {
 public:
  // By depth, from 1 on.
  explicit CvxqLevels(std::span<const std::span<const float>> levels);
  const ScalarTable& table(int depth) const { return tables_[static_cast<size_t>(depth - 1)]; }
  // The mean squared error on a unit Gaussian, of the best scale of the search; how much of it one
  // more bit takes.
  double error(int depth) const { return errors_[static_cast<size_t>(depth)]; }
  double gain(int depth) const { return error(depth) - error(depth + 1); }
  const float* all() const { return all_.data(); }

 private:
  std::vector<ScalarTable> tables_;
  std::array<double, kCvxqDepths> errors_{};
  alignas(64) std::array<float, kCvxqAllLevels> all_{};
};
const CvxqLevels& cvxq_levels(bool is_lloyd);  // else CVXQ's compander

// dst[j] = centre_j + scale_j * level of code j, product and sum rounded.
void cvxq_decode_row_ref(const CvxqCluster& cluster, const float* levels, const uint8_t* stream,
                         float* dst);
void cvxq_decode_row_avx512(const CvxqCluster& cluster, const float* levels, const uint8_t* stream,
                            float* dst);

struct CvxqSize {
  int64_t n_clusters = 1;
  int64_t n_bytes = 0;  // of the plane of codes
};

// Where the streams of rows are and how they are read. Any bytes in the planes are safe.
class CvxqRows {
 public:
  enum Plane : size_t { kCodes, kLengths, kDepths, kCentres, kScales, kClusters };

  // Of rows [row, row + n_rows).
  CvxqRows(const CvxqSize& size, const CodesView& codes, int64_t row, int64_t n_rows);
  // Of the row with this number among them: its cluster, and where its stream begins in the plane,
  // which is past the end where planes are damaged.
  const CvxqCluster& cluster(size_t i) const {
    return clusters_[static_cast<size_t>(rows_[i].cluster)];
  }
  int64_t begin(size_t i) const { return rows_[i].begin; }
  // dst[n, n_in]: the values of n of them from the first on.
  void decode(const CodesView& codes, int64_t first, int64_t n, const CvxqLevels& levels,
              float* dst) const;

  static int depth_at(const CodesView& codes, int64_t cluster, int64_t col);

 private:
  struct Row {
    int64_t cluster = 0, begin = 0;
  };
  CvxqSize size_;
  std::vector<Row> rows_;
  std::vector<CvxqCluster> clusters_;  // those of no row here stay empty
};

}  // namespace quern
