// SPDX-License-Identifier: Apache-2.0
// codebook: `dim` neighbours of a row at once to the nearest point of a small learned table, one
// table for each group of rows x columns (GPTVQ).
//
// Definition. k = 2^(dim bits) points q of signed bytes and a scale per group;
//     (w_hat_j ... w_hat_(j + dim - 1)) = scale * q[code].
// Fit: weighted k-means from Mahalanobis seeds (codebook_cluster.cc) on the weights of the group as
// the solver would have them corrected; the points are then rounded to bytes of scale
// max |point| / 127, and one more round of means moves no code.
//
// svd=r (dim 1): the sorted tables of all groups, as rows of a matrix, are replaced by rank r: a
// group stores r bytes and a scale, the matrix r points of the basis. This needs all groups at
// once, so they are fitted from W before any is coded.
//
// Importance: columns count by the pivot D_j of the Hessian where the solver tells them, in
// choosing the nearest point and in the mean alike. Coding is nearest in the metric of the block
// where the solver passes one (GPTVQ's Mahalanobis distance), else plain.
//
// Layout. codes: U8 [n_out, bytes], a bit stream per row, dim * bits bits for each dim columns.
// table: I8 [row groups, column groups, k, dim]; scales: F16 [row groups, column groups]. With svd:
// table: I8 [row groups, column groups, r]; basis: F16 [r, k].
// Bits: bits + (8 k dim + 16) / (rows * cols); rows=0 takes the rows that make it .125, roughly.
// Reference: GPTVQ (arXiv 2402.15319).
#include "codecs/codebook.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "base/float_types.h"
#include "base/parallel.h"
#include "codecs/bit_stream.h"
#include "codecs/code_panels.h"
#include "codecs/codebook_svd.h"
#include "codecs/codec.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kNumber, "", 0.25, 4, {}, "bits per weight; bits * dim is whole"},
    {"dim", ParamKind::kInt, "2", 1, 4, {}, "columns coded together: 1, 2 or 4"},
    {"cols", ParamKind::kInt, "256", 0, 1 << 20, {}, "columns that share a table; 0: all"},
    {"rows", ParamKind::kInt, "0", 0, 1 << 16, {}, "rows that share it; 0: as .125 bits allow"},
    {"iterations", ParamKind::kInt, "50", 0, 1000, {}, "of the fit, at most"},
    {"weighted", ParamKind::kChoice, "true", 0, 0, "true|false", "columns count by importance"},
    {"svd", ParamKind::kInt, "0", 0, 16, {}, "rank of the tables, dim 1 only; 0: as they are"},
};

constexpr float kLargestScale = 65504;
constexpr float kFarthest = 1e6f;  // in scales
constexpr int64_t kMostElements = int64_t{1} << 56;
constexpr float kOnes[kMaxCodebookDim] = {1, 1, 1, 1};

// R with R^T R = M / (mean of M's diagonal), upper triangular, for the metric M of a block: nearest
// in M is plainly nearest after a turn by R. Where M has none, and without M, the identity.
struct Root {
  int n;  // columns of the block; zeros beyond
  float values[kMaxCodebookDim][kMaxCodebookDim] = {};

  explicit Root(int n) : n(n) {
    for (int t = 0; t < n; ++t) values[t][t] = 1;
  }
  explicit Root(MatrixView<const float> metric) : Root(static_cast<int>(metric.cols)) {
    double mean = 0, r[kMaxCodebookDim][kMaxCodebookDim] = {};
    for (int t = 0; t < n; ++t) mean += metric(t, t) / static_cast<double>(n);
    for (int t = 0; t < n; ++t) {
      for (int u = t; u < n; ++u) {
        double rest = metric(t, u) / mean;
        for (int v = 0; v < t; ++v) rest -= r[v][t] * r[v][u];
        if (u == t && !(rest > 0)) return;
        r[t][u] = u == t ? std::sqrt(rest) : rest / r[t][t];
      }
    }
    for (int t = 0; t < n; ++t) std::copy(r[t], r[t] + n, values[t]);
  }
  void turn(const float* x, float* y) const {
    for (int t = 0; t < n; ++t) {
      y[t] = 0;
      for (int u = t; u < n; ++u) y[t] += values[t][u] * x[u];
    }
  }
};

// Nearest points of one table.
class Search {
 public:
  Search(const CodebookPoints& points, const Root& root)
      : root_(root), turned_(points.k, points.dim), nearest_(codebook_nearest()) {
    for (int64_t c = 0; c < points.k; ++c) {
      float x[kMaxCodebookDim] = {}, y[kMaxCodebookDim] = {};
      for (int t = 0; t < root.n; ++t) x[t] = points.at(c, t);
      root.turn(x, y);
      for (int t = 0; t < root.n; ++t) turned_.at(c, t) = y[t];
    }
  }
  unsigned code(const float* x) const {
    float y[kMaxCodebookDim] = {};
    root_.turn(x, y);
    return static_cast<unsigned>(nearest_(turned_, y, kOnes));
  }

 private:
  Root root_;
  CodebookPoints turned_;
  CodebookNearest nearest_;
};

class CodebookCodec final : public Codec {
 public:
  explicit CodebookCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        bits_(params.number("bits")),
        dim_(static_cast<int>(params.integer("dim"))),
        width_(static_cast<int>(bits_ * dim_)),
        k_(int64_t{1} << width_),
        cols_(params.integer("cols")),
        rows_(params.integer("rows")),
        iterations_(static_cast<int>(params.integer("iterations"))),
        is_weighted_(params.flag("weighted")),
        rank_(params.integer("svd")) {
    if (rows_ == 0) {
      rows_ =
          std::max<int64_t>(1, 64 * (rank_ > 0 ? rank_ : k_ * dim_) / (cols_ > 0 ? cols_ : 256));
    }
  }

  std::string spec() const override { return spec_; }
  Claim claim() const override { return {bits_, 0, "no Gaussian claim"}; }
  int64_t block_cols() const override { return dim_; }
  int64_t block_rows() const override { return rows_; }
  int64_t group_cols(int64_t n_in) const override {
    return cols_ == 0 ? n_in : std::min(cols_, n_in);
  }
  bool weighs_columns() const override { return is_weighted_; }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    const int64_t down = ceil_div(n_out, rows_), across = ceil_div(n_in, group_cols(n_in));
    std::vector<PlaneSpec> planes = {{"codes", DType::kU8, {n_out, row_bytes(n_in)}}};
    if (rank_ > 0) {
      planes.push_back({"table", DType::kI8, {down, across, rank_}});
    } else {
      planes.push_back({"table", DType::kI8, {down, across, k_, dim_}});
    }
    planes.push_back({"scales", DType::kF16, {down, across}});
    if (rank_ > 0) planes.push_back({"basis", DType::kF16, {rank_, k_}});
    for (const PlaneSpec& plane : planes) {
      if (element_count(plane.shape).value_or(kMostElements + 1) > kMostElements) {
        return error("{}: a matrix of {} x {} has too many groups", spec_, n_out, n_in);
      }
    }
    return planes;
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    if (rank_ == 0) return;
    const MatrixView<const float> w = source.w;
    const int64_t group = group_cols(w.cols), across = ceil_div(w.cols, group);
    const int64_t down = ceil_div(w.rows, rows_);
    Matrix<double> tables(down * across, k_);
    parallel_for(down * across, 16, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t row = g / across * rows_, col = g % across * group;
        const auto part = w.row_range(row, std::min(rows_, w.rows - row))
                              .col_range(col, std::min(group, w.cols - col));
        CodebookPoints points = points_of(part, source.weight.empty() || !is_weighted_
                                                    ? std::span<const float>{}
                                                    : source.weight.subspan(col, part.cols));
        std::sort(points.values.begin(), points.values.begin() + k_);
        for (int64_t c = 0; c < k_; ++c) tables(g, c) = points.at(c, 0);
      }
    });
    const CodebookFactors factors = codebook_factors(tables, rank_);
    for (int64_t i = 0; i < rank_ * k_; ++i) {
      put_half(codes.planes[3], i, static_cast<float>(factors.basis.data()[i]));
    }
    for (int64_t g = 0; g < down * across; ++g) {
      put_bytes(factors.coefficients.row(g), rank_, g, codes);
    }
  }

  void fit(MatrixView<const float> w, std::span<const float> weight, int64_t row, int64_t col,
           const MutableCodes& codes) const override {
    if (rank_ > 0) return;
    for (int64_t i = 0; i < w.rows; i += rows_) {
      const CodebookPoints points = points_of(w.row_range(i, std::min(rows_, w.rows - i)),
                                              is_weighted_ ? weight : std::span<const float>{});
      std::vector<double> values(static_cast<size_t>(k_ * dim_));
      for (int64_t c = 0; c < k_; ++c) {
        for (int t = 0; t < dim_; ++t) values[static_cast<size_t>(c * dim_ + t)] = points.at(c, t);
      }
      put_bytes(values.data(), k_ * dim_, group_of(codes.n_in, row + i, col), codes);
    }
  }

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    for (int64_t i = 0, height = 0; i < w.rows; i += height) {
      height = std::min(rows_ - (row + i) % rows_, w.rows - i);
      const auto rows = w.row_range(i, height);
      const auto rows_hat = w_hat.row_range(i, height);
      const int64_t group = group_cols(codes.n_in);
      for (int64_t j = 0, width = 0; j < w.cols; j += width) {
        width = std::min(group - (col + j) % group, w.cols - j);
        const Table table = table_of(codes, group_of(codes.n_in, row + i, col + j));
        const int64_t whole = width / dim_ * dim_;  // the last block of a row may be shorter
        encode_blocks(table, Root(dim_), rows.col_range(j, whole), row + i, col + j, codes,
                      rows_hat.col_range(j, whole));
        if (whole == width) continue;
        encode_blocks(table, Root(static_cast<int>(width - whole)),
                      rows.col_range(j + whole, width - whole), row + i, col + j + whole, codes,
                      rows_hat.col_range(j + whole, width - whole));
      }
    }
  }

  void encode_block(MatrixView<const float> w, MatrixView<const float> metric, int64_t row,
                    int64_t col, const MutableCodes& codes,
                    MatrixView<float> w_hat) const override {
    const Root root(metric);
    for (int64_t i = 0, height = 0; i < w.rows; i += height) {
      height = std::min(rows_ - (row + i) % rows_, w.rows - i);
      encode_blocks(table_of(codes, group_of(codes.n_in, row + i, col)), root,
                    w.row_range(i, height), row + i, col, codes, w_hat.row_range(i, height));
    }
  }

  int linear_parts() const override { return rank_ > 0 ? 0 : 1; }
  std::unique_ptr<LinearPart> linear_part(int, const MutableCodes& codes) const override {
    return std::make_unique<Points>(*this, codes);
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const int64_t group = group_cols(codes.n_in), bytes = row_bytes(codes.n_in);
    const bool is_whole = group >= codes.n_in || group / dim_ * width_ % 8 == 0;
    const auto decode_part =
        kernels().isa == Isa::kAvx512 && is_whole ? codebook_decode_avx512 : codebook_decode_ref;
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      const uint8_t* stream = reinterpret_cast<const uint8_t*>(codes.planes[0]) + i * bytes;
      for (int64_t j = 0; j < codes.n_in; j += group) {
        const int64_t g = group_of(codes.n_in, i, j), n = std::min(group, codes.n_in - j);
        if (rank_ > 0 || (!is_whole && j > 0)) {
          const Table table = table_of(codes, g);
          for (int64_t c = j; c < j + n; ++c) {
            dst[c] = table.value(get_code(stream, c / dim_, width_), static_cast<int>(c % dim_));
          }
          continue;
        }
        const int64_t byte = j / dim_ * width_ / 8;
        decode_part({stream + byte, bytes - byte,
                     reinterpret_cast<const int8_t*>(codes.planes[1]) + g * k_ * dim_,
                     scale_of(codes, g), dim_, width_, n},
                    dst + j);
      }
    }
  }

  // Exact, of tables of 256 bytes at most; others are rounded.
  PanelTile panel_tile(int64_t n_in) const override {
    const int64_t in_panel = panel_group(n_in);
    return in_panel == 0 ? PanelTile() : row_tile(in_panel, group_cols(n_in), n_in);
  }

  void decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, const MutablePanels& out) const override {
    const int64_t group = group_cols(codes.n_in), in_panel = panel_group(codes.n_in);
    if (in_panel == 0) return Codec::decode_panels(codes, row, n_rows, col, n_cols, out);
    const int64_t bytes = row_bytes(codes.n_in);
    const auto write = kernels().isa == Isa::kAvx512 ? codebook_panel_avx512 : codebook_panel_ref;
    for (int64_t r = 0; r < n_rows; r += kPanelRows) {
      const int64_t p = r / kPanelRows;
      for (int64_t j = 0; j < n_cols; j += group) {
        const int64_t first = (col + j) / dim_ * width_ / 8, n = std::min(group, n_cols - j);
        const auto* stream =
            reinterpret_cast<const uint8_t*>(codes.planes[0]) + (row + r) * bytes + first;
        CodebookPanel part{
            stream, bytes, bytes - first, {}, dim_, width_, std::min(kPanelRows, n_rows - r), n};
        float scales[kPanelRows];
        for (int64_t i = 0; i < part.n_rows; ++i) {
          const int64_t g = group_of(codes.n_in, row + r + i, col + j);
          part.tables[i] = reinterpret_cast<const int8_t*>(codes.planes[1]) + g * k_ * dim_;
          scales[i] = scale_of(codes, g);
        }
        write(part, out.levels + p * out.levels_stride + j * kPanelRows);
        scale_panel(scales, 1, part.n_rows, n, n, in_panel,
                    out.scales + p * out.scales_stride + j / in_panel * kPanelRows);
      }
    }
  }

 private:
  // The points of all tables: [groups, k, dim].
  class Points final : public LinearPart {
   public:
    Points(const CodebookCodec& codec, const MutableCodes& codes) : codec_(codec), codes_(codes) {}
    std::vector<float> values() const override {
      const int64_t size = codec_.k_ * codec_.dim_;
      const int64_t groups = codec_.group_of(codes_.n_in, codes_.n_out - 1, codes_.n_in - 1) + 1;
      std::vector<float> values(static_cast<size_t>(groups * size));
      const auto* bytes = reinterpret_cast<const int8_t*>(codes_.planes[1]);
      for (int64_t i = 0; i < groups * size; ++i) {
        values[static_cast<size_t>(i)] = scale_of(codes_, i / size) * static_cast<float>(bytes[i]);
      }
      return values;
    }
    void decode(std::span<const float> values, int64_t row, int64_t n_rows,
                float* dst) const override {
      for (int64_t i = row; i < row + n_rows; ++i) {
        for (int64_t j = 0; j < codes_.n_in; ++j) *dst++ = values[place(i, j)];
      }
    }
    // Each weight is one of the values: the slope is one.
    void gather(MatrixView<const float> g, int, std::span<double> sums) const override {
      for (int64_t i = 0; i < g.rows; ++i) {
        for (int64_t j = 0; j < g.cols; ++j) sums[place(i, j)] += g(i, j);
      }
    }
    void store(std::span<const float> values) override {
      const auto size = static_cast<size_t>(codec_.k_ * codec_.dim_);
      for (size_t g = 0; g < values.size() / size; ++g) {
        const std::vector<double> points(&values[g * size], &values[g * size] + size);
        codec_.put_bytes(points.data(), static_cast<int64_t>(size), static_cast<int64_t>(g),
                         codes_);
      }
    }

   private:
    size_t place(int64_t i, int64_t j) const {
      const int64_t dim = codec_.dim_;
      const auto* stream = reinterpret_cast<const uint8_t*>(codes_.planes[0]);
      const unsigned code =
          get_code(stream + i * codec_.row_bytes(codes_.n_in), j / dim, codec_.width_);
      const int64_t point = codec_.group_of(codes_.n_in, i, j) * codec_.k_ + code;
      return static_cast<size_t>(point * dim + j % dim);
    }
    const CodebookCodec& codec_;
    MutableCodes codes_;
  };

  struct Table {
    float scale;
    CodebookPoints points;  // in scales
    float value(unsigned code, int t) const { return scale * points.at(code, t); }
  };

  int64_t panel_group(int64_t n_in) const {
    const int64_t group = group_cols(n_in);
    const bool is_whole = group >= n_in || group / dim_ * width_ % 8 == 0;
    return rank_ > 0 || !is_whole || k_ * dim_ > 256 ? 0 : panel_group_of(group, n_in);
  }
  int64_t row_bytes(int64_t n_in) const {
    return stream_bytes(ceil_div<int64_t>(n_in, dim_), width_);
  }
  int64_t group_of(int64_t n_in, int64_t row, int64_t col) const {
    const int64_t group = group_cols(n_in);
    return row / rows_ * ceil_div(n_in, group) + col / group;
  }
  static float scale_of(const CodesView& codes, int64_t g) { return half_at(codes.planes[2], g); }

  Table table_of(const CodesView& codes, int64_t g) const {
    Table table{scale_of(codes, g), CodebookPoints(k_, dim_)};
    const auto* bytes = reinterpret_cast<const int8_t*>(codes.planes[1]);
    for (int64_t c = 0; c < k_; ++c) {
      for (int t = 0; t < dim_ && rank_ == 0; ++t) {
        table.points.at(c, t) = static_cast<float>(bytes[(g * k_ + c) * dim_ + t]);
      }
      for (int64_t r = 0; r < rank_; ++r) {
        table.points.at(c, 0) +=
            static_cast<float>(bytes[g * rank_ + r]) * half_at(codes.planes[3], r * k_ + c);
      }
    }
    return table;
  }

  // Rounds numbers to bytes of one scale and stores them as those of group g.
  void put_bytes(const double* values, int64_t n, int64_t g, const MutableCodes& codes) const {
    double largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(values[i]));
    const uint16_t half = float_to_f16(std::min(static_cast<float>(largest / 127), kLargestScale));
    std::memcpy(codes.planes[2] + 2 * g, &half, 2);
    const double scale = f16_to_float(half);
    for (int64_t i = 0; i < n; ++i) {
      const double q = scale > 0 ? std::clamp(std::nearbyint(values[i] / scale), -127.0, 127.0) : 0;
      codes.planes[1][g * n + i] = static_cast<std::byte>(static_cast<int8_t>(q));
    }
  }

  // Fits the points of one group. Weights are brought to at most 1, so that nothing overflows.
  CodebookPoints points_of(MatrixView<const float> w, std::span<const float> weight) const {
    float largest = 0, heaviest = 0;
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) {
        if (std::isfinite(w(i, j))) largest = std::max(largest, std::abs(w(i, j)));
      }
    }
    for (const float h : weight) heaviest = std::max(heaviest, h);
    CodebookSample sample{dim_, {}, {}};
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < round_up<int64_t>(w.cols, dim_); ++j) {
        const bool is_in = j < w.cols;  // the last block of a row may be shorter
        const float x = is_in && largest > 0 ? w(i, j) / largest : 0;
        sample.x.push_back(std::isfinite(x) ? x : 0);
        const float h = weight.empty() || !(heaviest > 0) ? 1.0f
                        : is_in ? weight[static_cast<size_t>(j)] / heaviest
                                : 0.0f;
        sample.weight.push_back(is_in ? std::max(h, 1e-6f) : 0);
      }
    }
    CodebookPoints points = codebook_seeds(sample, k_);
    codebook_cluster(sample, iterations_, points);
    for (float& value : points.values) value *= largest;
    return points;
  }

  // Codes blocks of root.n columns of one group.
  void encode_blocks(const Table& table, const Root& root, MatrixView<const float> w, int64_t row,
                     int64_t col, const MutableCodes& codes, MatrixView<float> w_hat) const {
    const Search search(table.points, root);
    for (int64_t i = 0; i < w.rows; ++i) {
      auto* stream =
          reinterpret_cast<uint8_t*>(codes.planes[0]) + (row + i) * row_bytes(codes.n_in);
      for (int64_t j = 0; j < w.cols; j += root.n) {
        float x[kMaxCodebookDim];
        for (int t = 0; t < root.n; ++t) {
          const float q = table.scale > 0 ? w(i, j + t) / table.scale : 0;
          x[t] = q == q ? std::clamp(q, -kFarthest, kFarthest) : 0;
        }
        const unsigned code = search.code(x);
        put_code(stream, (col + j) / dim_, width_, code);
        for (int t = 0; t < root.n; ++t) w_hat(i, j + t) = table.value(code, t);
      }
    }
  }

  std::string spec_;
  double bits_;
  int dim_;
  int width_;  // of a code
  int64_t k_;
  int64_t cols_, rows_;
  int iterations_;
  bool is_weighted_;
  int64_t rank_;
};

Result<std::unique_ptr<Codec>> make_codebook(const spec::Params& params) {
  const double bits = params.number("bits");
  const int64_t dim = params.integer("dim"), rank = params.integer("svd");
  const double width = bits * static_cast<double>(dim);
  if (dim == 3) return usage_error("codebook: dim is 3, expected 1, 2 or 4");
  if (width != std::floor(width) || width < 1 || width > 12 || width == 9 || width == 11) {
    return usage_error("codebook: {} bits in dim {} make codes of {} bits, expected 1..8, 10 or 12",
                       bits, dim, width);
  }
  if (params.integer("cols") % dim != 0) {
    return usage_error("codebook: cols is {}, expected a multiple of dim, {}",
                       params.integer("cols"), dim);
  }
  if (rank > 0 && (dim != 1 || rank > std::exp2(width))) {
    return usage_error("codebook: svd is {} in dim {}, expected dim 1 and a rank of at most {}",
                       rank, dim, std::exp2(width));
  }
  return std::make_unique<CodebookCodec>(params);
}

constexpr std::string_view kExamples[] = {
    "codebook(2)",
    "codebook(3, rows=4, cols=32)",
    "codebook(2, dim=1)",
    "codebook(1.5, dim=4, rows=5, cols=0)",
    "codebook(2.5, dim=4, rows=32, iterations=3)",
    "codebook(3, dim=1, cols=64, svd=4)",
    "codebook(1.5, rows=1, cols=6)",
};

}  // namespace

extern const CodecInfo codebook_codec_info;
const CodecInfo codebook_codec_info = {
    .id = 31,
    .name = "codebook",
    .params = kParams,
    .summary = "small learned tables of points, shared by rows and columns (GPTVQ)",
    .make = make_codebook,
    .examples = kExamples,
};

}  // namespace quern
