// SPDX-License-Identifier: Apache-2.0
// outliers: another codec, and a few weights kept apart as halves (EasyQuant, SpQR).
//
// Definition. `percent` of the weights of the matrix are kept; all others are coded by `codec`:
//     w_hat = half(w) where kept, else what the codec says there.
// A kept value replaces the codec's instead of being added to it: so it is exact, and what the
// codec decodes to under it is of no account, be its codes numbers or points of a lattice. The
// codec meets a zero there, which widens no range and pulls on no scale. Places are chosen from W
// before anything is coded; values are those of the targets, errors of earlier columns included.
//
// Places are those of highest score:
//     magnitude  |w - mean W|, at least `sigmas` standard deviations of W (EasyQuant)
//     error      importance_j (w - v)^2, v what the codec makes of w once the highest
//                importance_j w^2 are kept: what keeping w saves (after SpQR, whose groups are
//                fitted anew without each weight in turn)
//
// Layouts. csr: the best of the whole matrix; rows end at `outlier_ends`, U32 [n_out], in
//     `outlier_columns`, U16 [room] (U32 past 65536 columns), room = percent of the matrix.
// groups: the best c of every 256 columns of a row, c = percent of 256; no ends, and
//     `outlier_columns`, U8 [n_out, spans, c], counts from the first of the 256.
// `outlier_values`, F16, as many as columns. Slots of a row are in the order of columns.
// Bits: those of the codec + percent / 100 * 32 + 32 / n_in, or c * 24 / 256.
//
// Decoding is the codec's, then one store per kept weight: at half a percent there is nothing to
// gain from wider instructions.
// References: EasyQuant arXiv 2403.02775 algorithm 1; SpQR arXiv 2306.03078 section 4.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/checked.h"
#include "base/float_types.h"
#include "base/parallel.h"
#include "codecs/claims.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"codec", ParamKind::kCall, "", 0, 0, {}, "what codes the other weights"},
    {"percent", ParamKind::kNumber, "0.5", 0.001, 50, {}, "of the weights to make room for"},
    {"select", ParamKind::kChoice, "magnitude", 0, 0, "magnitude|error", "which to keep"},
    {"sigmas", ParamKind::kNumber, "0", 0, 1000, {}, "keep none nearer to the mean than this"},
    {"layout", ParamKind::kChoice, "csr", 0, 0, "csr|groups", "how places are stored"},
};

constexpr std::string_view kMonteCarlo = "a million draws, rows of 4096";
constexpr ClaimRow kClaims[] = {
    {"outliers(int(4, group=0, clip=search, norm=2), percent=0.27)", 0.0098, kMonteCarlo},
};

constexpr int64_t kSpan = 256;            // columns that an 8-bit place counts
constexpr int64_t kMostNarrow = 1 << 16;  // columns that a 16-bit place counts

// Of non-negative scores the `n` highest are those above `least`, and `ties` of those equal to it.
struct Cut {
  float least;
  int64_t ties;
};

// Such floats are in the order of their bits, which are counted half by half.
Cut find_cut(const Matrix<float>& scores, int64_t n) {
  uint32_t found = 0;
  for (const int shift : {16, 0}) {
    std::vector<int64_t> counts(1 << 16);
    for (int64_t i = 0; i < scores.rows() * scores.cols(); ++i) {
      const auto bits = std::bit_cast<uint32_t>(scores.data()[i]);
      if (shift == 16 || bits >> 16 == found) ++counts[(bits >> shift) & 0xffff];
    }
    uint32_t digit = 0xffff;
    while (digit > 0 && n > counts[digit]) n -= counts[digit--];
    found = found << 16 | digit;
  }
  return {std::bit_cast<float>(found), n};
}

uint16_t finite_half(float value) { return float_to_f16(std::clamp(value, -65504.0f, 65504.0f)); }

template <class T>
T load(const std::byte* plane, int64_t i) {
  T value;
  std::memcpy(&value, plane + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void store(std::byte* plane, int64_t i, T value) {
  std::memcpy(plane + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

class OutliersCodec final : public Codec {
 public:
  OutliersCodec(std::string text, std::unique_ptr<Codec> inner, const spec::Params& params)
      : spec_(std::move(text)),
        inner_(std::move(inner)),
        percent_(params.number("percent")),
        by_error_(params.word("select") == "error"),
        sigmas_(params.number("sigmas")),
        is_csr_(params.word("layout") == "csr"),
        per_span_(share_of(kSpan)) {}

  std::string spec() const override { return spec_; }
  Claim claim() const override { return find_claim(kClaims, spec_, inner_->claim().bits); }
  int64_t decode_unit() const override { return inner_->decode_unit(); }
  int64_t block_cols() const override { return inner_->block_cols(); }
  int64_t block_rows() const override { return inner_->block_rows(); }
  int64_t group_cols(int64_t n_in) const override { return inner_->group_cols(n_in); }
  bool weighs_columns() const override { return by_error_ || inner_->weighs_columns(); }

  // Ours come after those of the inner codec, which finds its own where it expects them.
  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    QUERN_ASSIGN(auto planes, inner_->planes(n_out, n_in));
    const int64_t n = checked_mul(n_out, n_in).value_or(std::numeric_limits<int64_t>::max());
    if (n > (int64_t{1} << 48) || n_in > std::numeric_limits<uint32_t>::max() ||
        (is_csr_ && share_of(n) > std::numeric_limits<uint32_t>::max())) {
      return error("{}: a matrix of {} x {} has more outliers than 32 bits count", spec_, n_out,
                   n_in);
    }
    Shape shape = {n_out, spans(n_in), per_span_};
    DType place = DType::kU8;
    if (is_csr_) {
      planes.push_back({"outlier_ends", DType::kU32, {n_out}});
      shape = {share_of(n)};
      place = is_wide(n_in) ? DType::kU32 : DType::kU16;
    }
    planes.push_back({"outlier_columns", place, shape});
    planes.push_back({"outlier_values", DType::kF16, shape});
    return planes;
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    const MatrixView<const float> w = source.w;
    Matrix<float> scores(w.rows, w.cols);
    double least = 0;
    if (by_error_) {
      score_errors(w, Matrix<float>(w.rows, w.cols), source.weight, scores);
      choose(scores, 0, codes);
      score_errors(w, trial(source, codes), source.weight, scores);
    } else {
      least = sigmas_ * score_magnitudes(w, scores);
    }
    choose(scores, least, codes);
    scores = rest(w, 0, 0, codes);
    inner_->fit_matrix({scores.view(), inner_weight(source.weight), source.feedback}, codes);
  }

  void fit(MatrixView<const float> w, std::span<const float> weight, int64_t row, int64_t col,
           const MutableCodes& codes) const override {
    inner_->fit(rest(w, row, col, codes).view(), inner_weight(weight), row, col, codes);
  }

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    inner_->encode(rest(w, row, col, codes).view(), row, col, codes, w_hat);
    for (int64_t i = 0; i < w.rows; ++i) {
      for_kept(codes, row + i, col, w.cols, [&](int64_t j, int64_t slot) {
        const uint16_t half = finite_half(w(i, j));
        store(codes.planes[codes.planes.size() - 1], slot, half);
        w_hat(i, j) = f16_to_float(half);
      });
    }
  }

  void copy_rows(std::span<const PlaneSpec> specs, const MutableCodes& from, int64_t row,
                 int64_t n_rows, const MutableCodes& to) const override {
    inner_->copy_rows(specs.first(specs.size() - (is_csr_ ? 3 : 2)), from, row, n_rows, to);
    for (int64_t i = row; i < row + n_rows; ++i) {
      const Slots slots = slots_of(from, i);
      for (int64_t slot = slots.begin; slot < slots.end; ++slot) {
        store(to.planes.back(), slot, load<uint16_t>(from.planes.back(), slot));
      }
    }
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    inner_->decode(codes, row, n_rows, dst);
    const std::byte* values = codes.planes[codes.planes.size() - 1];
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      const Slots slots = slots_of(codes, i);
      for (int64_t slot = slots.begin; slot < slots.end; ++slot) {
        const int64_t j = column_of(codes, slots, slot);
        if (j < codes.n_in) dst[j] = f16_to_float(load<uint16_t>(values, slot));
      }
    }
  }

 private:
  struct Slots {
    int64_t begin, end;
  };

  // The room among n weights, at least one.
  int64_t share_of(int64_t n) const {
    return std::max<int64_t>(
        1, static_cast<int64_t>(std::floor(percent_ * static_cast<double>(n) / 100 + 0.5)));
  }
  static int64_t spans(int64_t n_in) { return ceil_div(n_in, kSpan); }
  static bool is_wide(int64_t n_in) { return n_in > kMostNarrow; }

  std::span<const float> inner_weight(std::span<const float> weight) const {
    return inner_->weighs_columns() ? weight : std::span<const float>{};
  }

  // Whatever the bytes say, slots are among those there are, and no more than n_in.
  Slots slots_of(const CodesView& codes, int64_t row) const {
    if (!is_csr_) {
      const int64_t n = spans(codes.n_in) * per_span_;
      return {row * n, row * n + n};
    }
    const std::byte* ends = codes.planes[codes.planes.size() - 3];
    const int64_t begin = row == 0 ? 0 : load<uint32_t>(ends, row - 1);
    const int64_t room = share_of(codes.n_out * codes.n_in);
    return {begin, std::min({int64_t{load<uint32_t>(ends, row)}, room, begin + codes.n_in})};
  }

  int64_t column_of(const CodesView& codes, const Slots& slots, int64_t slot) const {
    const std::byte* columns = codes.planes[codes.planes.size() - 2];
    if (!is_csr_) {
      return (slot - slots.begin) / per_span_ * kSpan + std::to_integer<int64_t>(columns[slot]);
    }
    return is_wide(codes.n_in) ? load<uint32_t>(columns, slot) : load<uint16_t>(columns, slot);
  }

  // body(column - col, slot) for what is kept of columns [col, col + cols) of a row.
  template <class Body>
  void for_kept(const CodesView& codes, int64_t row, int64_t col, int64_t cols,
                const Body& body) const {
    const Slots slots = slots_of(codes, row);
    int64_t slot = slots.begin, past = std::max(slots.begin, slots.end);
    while (slot < past) {  // to the first at or after col
      const int64_t middle = slot + (past - slot) / 2;
      if (column_of(codes, slots, middle) < col) {
        slot = middle + 1;
      } else {
        past = middle;
      }
    }
    for (; slot < slots.end; ++slot) {
      const int64_t j = column_of(codes, slots, slot);
      if (j >= std::min(col + cols, codes.n_in)) break;
      body(j - col, slot);
    }
  }

  // What the inner codec codes: w, the columns from `col` on, without what is kept.
  Matrix<float> rest(MatrixView<const float> w, int64_t row, int64_t col,
                     const CodesView& codes) const {
    Matrix<float> rest(w.rows, w.cols);
    for (int64_t i = 0; i < w.rows; ++i) {
      std::copy_n(w.row(i), w.cols, rest.row(i));
      for_kept(codes, row + i, col, w.cols, [&](int64_t j, int64_t) { rest(i, j) = 0; });
    }
    return rest;
  }

  // |w - mean|; returns the standard deviation.
  static double score_magnitudes(MatrixView<const float> w, Matrix<float>& scores) {
    double sum = 0, squares = 0;
    const auto n = static_cast<double>(w.rows) * static_cast<double>(w.cols);
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) sum += w(i, j);
    }
    const double mean = sum / n;
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) {
        const double distance = std::abs(w(i, j) - mean);
        squares += distance * distance;
        scores(i, j) = std::max(0.0f, static_cast<float>(distance));  // a NaN is 0
      }
    }
    return std::sqrt(squares / n);
  }

  // importance (w - w_hat)^2, a NaN is 0.
  static void score_errors(MatrixView<const float> w, const Matrix<float>& w_hat,
                           std::span<const float> weight, Matrix<float>& scores) {
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) {
        const float error = w(i, j) - w_hat(i, j);
        const float importance = weight.empty() ? 1 : weight[static_cast<size_t>(j)];
        scores(i, j) = std::max(0.0f, importance * error * error);
      }
    }
  }

  // What the inner codec makes of W when it is fitted to what is not kept at present.
  Matrix<float> trial(const MatrixSource& source, const CodesView& kept) const {
    constexpr int64_t kRows = 32;
    const MatrixView<const float> w = source.w;
    auto made = CodedMatrix::create(*inner_, w.rows, w.cols);
    QUERN_CHECK(made.has_value());
    const MutableCodes codes = made->mutable_view();
    const Matrix<float> fitted = rest(w, 0, 0, kept);
    const std::span<const float> weight = inner_weight(source.weight);
    inner_->fit_matrix({fitted.view(), weight}, codes);
    Matrix<float> w_hat(w.rows, w.cols);
    const int64_t group = inner_->group_cols(w.cols);
    parallel_for(w.rows, round_up(kRows, inner_->block_rows()), [&](int64_t begin, int64_t end) {
      for (int64_t col = 0; col < w.cols; col += group) {
        const int64_t width = std::min(group, w.cols - col);
        const auto of_group = weight.empty() ? weight : weight.subspan(col, width);
        inner_->fit(fitted.view().row_range(begin, end - begin).col_range(col, width), of_group,
                    begin, col, codes);
        inner_->encode(w.row_range(begin, end - begin).col_range(col, width), begin, col, codes,
                       w_hat.view().row_range(begin, end - begin).col_range(col, width));
      }
    });
    return w_hat;
  }

  // Stores the places of the highest scores, none below `least`, and no values yet.
  void choose(const Matrix<float>& scores, double least, const MutableCodes& codes) const {
    const auto stored = planes(codes.n_out, codes.n_in);
    QUERN_CHECK(stored.has_value());
    for (size_t p = codes.planes.size() - (is_csr_ ? 3 : 2); p < codes.planes.size(); ++p) {
      std::memset(codes.planes[p], 0, (*stored)[p].n_bytes());
    }
    if (is_csr_) {
      choose_of_matrix(scores, least, codes);
    } else {
      for (int64_t i = 0; i < scores.rows(); ++i) choose_of_row(scores, i, codes);
    }
  }

  void choose_of_matrix(const Matrix<float>& scores, double least,
                        const MutableCodes& codes) const {
    Cut cut = find_cut(scores, share_of(codes.n_out * codes.n_in));
    std::byte* const* planes = codes.planes.data() + codes.planes.size() - 3;
    int64_t slot = 0;
    for (int64_t i = 0; i < scores.rows(); ++i) {
      for (int64_t j = 0; j < scores.cols(); ++j) {
        const float score = scores(i, j);
        if (score < least || score < cut.least) continue;
        if (score == cut.least && cut.ties-- <= 0) continue;
        if (is_wide(codes.n_in)) {
          store(planes[1], slot++, static_cast<uint32_t>(j));
        } else {
          store(planes[1], slot++, static_cast<uint16_t>(j));
        }
      }
      store(planes[0], i, static_cast<uint32_t>(slot));
    }
  }

  // Slots past the columns of a short span get the place 255, which is past them too.
  void choose_of_row(const Matrix<float>& scores, int64_t row, const MutableCodes& codes) const {
    std::byte* places = codes.planes[codes.planes.size() - 2] + slots_of(codes, row).begin;
    for (int64_t col = 0; col < scores.cols(); col += kSpan, places += per_span_) {
      const int64_t width = std::min(kSpan, scores.cols() - col);
      const int64_t n = std::min(per_span_, width);
      std::vector<int64_t> order(static_cast<size_t>(width));
      for (int64_t j = 0; j < width; ++j) order[static_cast<size_t>(j)] = j;
      const float* of_span = scores.row(row) + col;
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return of_span[a] > of_span[b]; });
      std::sort(order.begin(), order.begin() + n);
      for (int64_t s = 0; s < per_span_; ++s) {
        places[s] = static_cast<std::byte>(s < n ? order[static_cast<size_t>(s)] : kSpan - 1);
      }
    }
  }

  std::string spec_;
  std::unique_ptr<Codec> inner_;
  double percent_;
  bool by_error_;
  double sigmas_;
  bool is_csr_;
  int64_t per_span_;
};

Result<std::unique_ptr<Codec>> make_outliers(const spec::Params& params) {
  QUERN_ASSIGN(auto inner, make_codec(params.call("codec")));
  if (params.call("codec").name == "outliers") {
    return usage_error("outliers: keeps weights apart once; raise percent instead of nesting");
  }
  if (inner->decides_late()) {
    return usage_error(
        "outliers: {} decides on a column while the next one comes, too late for "
        "what is kept of it",
        inner->spec());
  }
  const bool fills_room = params.word("select") == "error" || params.word("layout") == "groups";
  if (params.number("sigmas") > 0 && fills_room) {
    return usage_error("outliers: sigmas is for select=magnitude and layout=csr");
  }
  QUERN_ASSIGN(std::string text, params.text_around(inner->spec()));
  return std::make_unique<OutliersCodec>(std::move(text), std::move(inner), params);
}

constexpr std::string_view kExamples[] = {
    "outliers(int(4, group=0, clip=search, norm=2), percent=0.27)",
    "outliers(int(4, group=0, clip=search, norm=2), percent=1, sigmas=3)",
    "outliers(int(3, group=16, sym=false), percent=1, select=error)",
    "outliers(int(4, group=64), percent=0.4, layout=groups)",
    "outliers(e8p, percent=5, layout=groups)",
    "outliers(codebook(2, rows=4, cols=32), percent=2, select=error)",
};

}  // namespace

extern const CodecInfo outliers_codec_info;
const CodecInfo outliers_codec_info = {
    .id = 50,
    .name = "outliers",
    .params = kParams,
    .summary = "another codec, and a few weights kept apart as halves (EasyQuant, SpQR)",
    .make = make_outliers,
    .examples = kExamples,
};

}  // namespace quern
