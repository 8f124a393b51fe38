// SPDX-License-Identifier: Apache-2.0
// additive: `dim` neighbours of a row as a sum of points, one out of each of several learned books
// that the matrix shares (AQLM).
//
// Definition. Books C_1 .. C_M of 2^B points in `dim` dimensions, a scale per row:
//     (w_hat_j ... w_hat_(j + dim - 1)) = scale * (C_1[b_1] + ... + C_M[b_M]).
// Fit: rows are brought to mean square one; residual k-means, then coding and means in turn
// (additive_fit.cc), columns weighed by their importance. Where errors are fed back, the scales
// take up the variance that these add; the books keep the shape of W. Encoding: a beam over the
// books (additive_search.cc), in the plain metric or in one that the solver passes.
//
// Layout. codes: U8 [n_out, bytes], a bit stream per row, code m of block j being number j M + m;
// books: F16 [M, 2^B, dim], with points=int8 I8 and units: F16 [M], the step of each book;
// scales: F16 [n_out].
// Bits: M B / dim + (16 or 8) M 2^B dim / (n_out n_in) + 16 / n_in.
// Reference: AQLM (arXiv 2401.06118).
#include "codecs/additive.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "base/float_types.h"
#include "codecs/bit_stream.h"
#include "codecs/claims.h"
#include "codecs/codec.h"
#include "codecs/row_scale.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"books", ParamKind::kInt, "", 1, kMaxAdditiveBooks, {}, "points that are added"},
    {"bits", ParamKind::kInt, "", 4, 16, {}, "of a code: books of 2^bits points"},
    {"dim", ParamKind::kInt, "8", 8, kMaxAdditiveDim, {}, "columns coded together: 8, 16 or 32"},
    {"points", ParamKind::kChoice, "f16", 0, 0, "f16|int8", "how books are stored"},
    {"beam", ParamKind::kInt, "8", 1, kMaxAdditiveBeam, {}, "partial sums kept by the search"},
    {"iterations", ParamKind::kInt, "25", 0, 1000, {}, "of the fit, at most"},
};

constexpr ClaimRow kClaims[] = {
    {"additive(2, 8)", .0892, "books fitted to a million Gaussian weights"},
};

constexpr float kFarthest = 1e3f;  // in scales
constexpr float kLargestHalf = 65504;
constexpr int64_t kMostVectors = 1 << 17;  // the fit looks at, or
constexpr int64_t kVectorsPerPoint = 32;   // so many for each point, if that is more

class AdditiveCodec final : public Codec {
 public:
  explicit AdditiveCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        books_(static_cast<int>(params.integer("books"))),
        bits_(static_cast<int>(params.integer("bits"))),
        dim_(static_cast<int>(params.integer("dim"))),
        beam_(static_cast<int>(params.integer("beam"))),
        iterations_(static_cast<int>(params.integer("iterations"))),
        is_int8_(params.word("points") == "int8"),
        k_(int64_t{1} << bits_) {}

  std::string spec() const override { return spec_; }
  Claim claim() const override {
    return find_claim(kClaims, spec_, static_cast<double>(books_ * bits_) / dim_);
  }
  int64_t block_cols() const override { return dim_; }
  int64_t encode_rows() const override { return std::max<int64_t>(32, k_ / 128); }
  int64_t group_cols(int64_t n_in) const override { return n_in; }
  bool weighs_columns() const override { return true; }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    std::vector<PlaneSpec> planes = {
        {"codes", DType::kU8, {n_out, row_bytes(n_in)}},
        {"books", is_int8_ ? DType::kI8 : DType::kF16, {books_, k_, dim_}},
        {"scales", DType::kF16, {n_out}}};
    if (is_int8_) planes.push_back({"units", DType::kF16, {books_}});
    return planes;
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    fit_row_scales({source.w, {}, 0}, 0, 1, codes.planes[2]);
    AdditiveBooks books(books_, k_, dim_);
    const double mse = additive_fit(sample_of(source, codes), {beam_, iterations_}, books);
    put_books(books, codes);
    fit_row_scales(source, mse, 1, codes.planes[2]);
  }

  void fit(MatrixView<const float>, std::span<const float>, int64_t, int64_t,
           const MutableCodes&) const override {}

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    const AdditiveBooks books = books_of(codes);
    const AdditiveCells cells(books);
    const int64_t whole = w.cols / dim_ * dim_;
    for (const auto& [first, n, width] :
         {Part{0, whole, dim_}, Part{whole, w.cols - whole, w.cols - whole}}) {
      if (n == 0) continue;
      Matrix<float> metric(width, width);
      for (int64_t t = 0; t < width; ++t) metric(t, t) = 1;
      const AdditiveSearch search(books, cells, metric.view(), beam_);
      encode_blocks(search, w.col_range(first, n), row, col + first, codes);
    }
    for (int64_t i = 0; i < w.rows; ++i) decode_part(codes, row + i, col, w.cols, w_hat.row(i));
  }

  void encode_block(MatrixView<const float> w, MatrixView<const float> metric, int64_t row,
                    int64_t col, const MutableCodes& codes,
                    MatrixView<float> w_hat) const override {
    const AdditiveBooks books = books_of(codes);
    encode_blocks(AdditiveSearch(books, AdditiveCells(books), metric, beam_), w, row, col, codes);
    for (int64_t i = 0; i < w.rows; ++i) decode_part(codes, row + i, col, w.cols, w_hat.row(i));
  }

  int linear_parts() const override { return 2; }
  std::unique_ptr<LinearPart> linear_part(int i, const MutableCodes& codes) const override {
    if (i == 0) {
      return additive_books_part(
          coded(codes), [this, codes](const AdditiveBooks& books) { put_books(books, codes); });
    }
    return additive_scales_part(coded(codes), [codes](std::span<const float> scales) {
      for (size_t row = 0; row < scales.size(); ++row) {
        put_half(codes.planes[2], static_cast<int64_t>(row),
                 std::clamp(scales[row], 0.0f, kLargestHalf));
      }
    });
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      decode_part(codes, i, 0, codes.n_in, dst);
    }
  }

 private:
  struct Part {
    int64_t first, n, width;
  };

  int64_t row_bytes(int64_t n_in) const {
    return stream_bytes(ceil_div<int64_t>(n_in, dim_) * books_, bits_);
  }
  const uint8_t* stream_of(const CodesView& codes, int64_t row) const {
    return reinterpret_cast<const uint8_t*>(codes.planes[0]) + row * row_bytes(codes.n_in);
  }

  AdditiveCoded coded(const CodesView& codes) const {
    const int64_t n = ceil_div<int64_t>(codes.n_in, dim_) * books_;
    AdditiveCoded coded{codes.n_in, books_of(codes), {}, {}};
    coded.codes.resize(static_cast<size_t>(codes.n_out * n));
    for (int64_t i = 0; i < codes.n_out; ++i) {
      coded.scales.push_back(row_scale(codes.planes[2], i));
      unpack(stream_of(codes, i), 0, n, coded.codes.data() + i * n);
    }
    return coded;
  }

  // The rows in units of their scales, all of them or some at equal steps; the last block padded.
  AdditiveSample sample_of(const MatrixSource& source, const CodesView& codes) const {
    const MatrixView<const float> w = source.w;
    const int64_t blocks = ceil_div<int64_t>(w.cols, dim_);
    const int64_t most = std::max(kMostVectors, kVectorsPerPoint * k_);
    const int64_t step = std::max<int64_t>(1, w.rows / ceil_div(most, blocks));
    AdditiveSample sample{Matrix<float>(ceil_div(w.rows, step), blocks * dim_), {}};
    for (int64_t i = 0; i < w.rows; i += step) {
      take(w.row_range(i, 1), row_scale(codes.planes[2], i), sample.x.row(i / step));
    }
    float heaviest = 0;
    for (const float h : source.weight) heaviest = std::max(heaviest, h);
    for (int64_t j = 0; j < w.cols; ++j) {
      const float h = heaviest > 0 ? source.weight[static_cast<size_t>(j)] / heaviest : 1.0f;
      sample.weight.push_back(std::max(h, 1e-6f));
    }
    sample.weight.resize(static_cast<size_t>(blocks * dim_));
    return sample;
  }

  // x = w / scale, and nothing that overflows when squared.
  static void take(MatrixView<const float> w, float scale, float* x) {
    for (int64_t j = 0; j < w.cols; ++j) {
      const float q = scale > 0 ? w(0, j) / scale : 0;
      x[j] = q == q ? std::clamp(q, -kFarthest, kFarthest) : 0;
    }
  }

  void encode_blocks(const AdditiveSearch& search, MatrixView<const float> w, int64_t row,
                     int64_t col, const MutableCodes& codes) const {
    constexpr int64_t kBatch = 512;
    const int64_t blocks = ceil_div<int64_t>(w.cols, dim_), n = w.rows * blocks;
    std::vector<float> batch(static_cast<size_t>(kBatch * dim_)), cost(kBatch);
    std::vector<uint16_t> found(static_cast<size_t>(kBatch * books_));
    float* x = batch.data();
    for (int64_t first = 0; first < n; first += kBatch) {
      const int64_t count = std::min(kBatch, n - first);
      std::fill_n(x, count * dim_, 0.0f);
      for (int64_t b = 0; b < count; ++b) {
        const int64_t i = (first + b) / blocks, j = (first + b) % blocks * dim_;
        take(w.row_range(i, 1).col_range(j, std::min<int64_t>(dim_, w.cols - j)),
             row_scale(codes.planes[2], row + i), x + b * dim_);
      }
      search.code(x, count, AdditiveSearch::Start::kFresh, found.data(), cost.data());
      for (int64_t b = 0; b < count; ++b) {
        const int64_t i = row + (first + b) / blocks, j = col / dim_ + (first + b) % blocks;
        auto* stream = reinterpret_cast<uint8_t*>(codes.planes[0]) + i * row_bytes(codes.n_in);
        for (int m = 0; m < books_; ++m)
          put_code(stream, j * books_ + m, bits_, found[static_cast<size_t>(b * books_ + m)]);
      }
    }
  }

  // Columns [col, col + n) of a row, from the start of a block on.
  void decode_part(const CodesView& codes, int64_t row, int64_t col, int64_t n, float* dst) const {
    constexpr int64_t kBatch = 64;  // blocks
    const auto decode_row =
        kernels().isa == Isa::kAvx512 ? additive_decode_avx512 : additive_decode_ref;
    const uint8_t* stream = stream_of(codes, row);
    uint16_t block_codes[kBatch * kMaxAdditiveBooks];
    float units[kMaxAdditiveBooks];
    for (int m = 0; m < books_ && is_int8_; ++m) units[m] = row_scale(codes.planes[3], m);
    AdditiveRow part{codes.planes[1],
                     is_int8_ ? units : nullptr,
                     books_,
                     k_,
                     dim_,
                     row_scale(codes.planes[2], row),
                     block_codes,
                     0};
    for (int64_t j = 0; j < n; j += kBatch * dim_) {
      part.n = std::min(kBatch * dim_, n - j);
      unpack(stream, (col + j) / dim_ * books_, ceil_div<int64_t>(part.n, dim_) * books_,
             block_codes);
      decode_row(part, dst + j);
    }
  }

  void unpack(const uint8_t* stream, int64_t first, int64_t n, uint16_t* codes) const {
    if (bits_ == 8) {
      std::copy_n(stream + first, n, codes);
    } else if (bits_ == 16) {
      std::memcpy(codes, stream + 2 * first, static_cast<size_t>(2 * n));
    } else {
      for (int64_t i = 0; i < n; ++i) {
        codes[i] = static_cast<uint16_t>(get_code(stream, first + i, bits_));
      }
    }
  }

  AdditiveBooks books_of(const CodesView& codes) const {
    AdditiveBooks books(books_, k_, dim_);
    const auto n = static_cast<int64_t>(books.values.size());
    if (!is_int8_) {
      kernels().f16_to_float(codes.planes[1], n, books.values.data());
      return books;
    }
    const auto* bytes = reinterpret_cast<const int8_t*>(codes.planes[1]);
    for (int64_t i = 0; i < n; ++i) {
      books.values[static_cast<size_t>(i)] =
          static_cast<float>(bytes[i]) * row_scale(codes.planes[3], i / (k_ * dim_));
    }
    return books;
  }

  void put_books(const AdditiveBooks& books, const MutableCodes& codes) const {
    const int64_t size = k_ * dim_;
    if (!is_int8_) {
      kernels().float_to_f16(books.values.data(), books_ * size, codes.planes[1]);
      return;
    }
    for (int m = 0; m < books_; ++m) {
      const float* values = books.point(m, 0);
      float largest = 0;
      for (int64_t i = 0; i < size; ++i) largest = std::max(largest, std::abs(values[i]));
      const uint16_t half = float_to_f16(largest / 127);
      std::memcpy(codes.planes[3] + 2 * m, &half, 2);
      const float unit = f16_to_float(half);
      for (int64_t i = 0; i < size; ++i) {
        const float q = unit > 0 ? std::nearbyint(values[i] / unit) : 0;
        codes.planes[1][m * size + i] =
            static_cast<std::byte>(static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f)));
      }
    }
  }

  std::string spec_;
  int books_, bits_, dim_, beam_, iterations_;
  bool is_int8_;
  int64_t k_;  // points in a book
};

Result<std::unique_ptr<Codec>> make_additive(const spec::Params& params) {
  const int64_t dim = params.integer("dim");
  if ((dim & (dim - 1)) != 0) {
    return usage_error("additive: dim is {}, expected 8, 16 or 32", dim);
  }
  return std::make_unique<AdditiveCodec>(params);
}

constexpr std::string_view kExamples[] = {
    "additive(2, 8)",
    "additive(1, 16)",
    "additive(1, 12, points=int8)",
    "additive(4, 8, dim=16, beam=2)",
    "additive(3, 5, points=int8)",
    "additive(3, 7, dim=32)",
};

}  // namespace

void additive_decode_ref(const AdditiveRow& row, float* dst) {
  const auto value = [&](int book, int64_t place) {
    if (row.units != nullptr) {
      return static_cast<float>(static_cast<int8_t>(row.points[place])) * row.units[book];
    }
    uint16_t half;
    std::memcpy(&half, row.points + 2 * place, 2);
    return f16_to_float(half);
  };
  for (int64_t i = 0; i < row.n; ++i) {
    const uint16_t* codes = row.codes + i / row.dim * row.books;
    float sum = 0;
    for (int m = 0; m < row.books; ++m) {
      const float term = value(m, (m * row.k + codes[m]) * row.dim + i % row.dim);
      sum = m == 0 ? term : sum + term;
    }
    dst[i] = row.scale * sum;
  }
}

extern const CodecInfo additive_codec_info;
const CodecInfo additive_codec_info = {
    .id = 32,
    .name = "additive",
    .params = kParams,
    .summary = "sums of points of learned books that the matrix shares (AQLM)",
    .make = make_additive,
    .examples = kExamples,
};

}  // namespace quern
