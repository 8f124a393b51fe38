// SPDX-License-Identifier: Apache-2.0
// trellis: every weight is a function of the last 32 bits of a stream to which it adds its own.
//
// Definition. A strip of `rows` rows is one stream. Its weights follow column after column, down
// the rows of each: weight p = j * height + r is row r of column j. Weight p ends at bit
// floor((p + 1) * bits), and its value is f(the 32 bits up to there), with f of trellis_code.h;
// what lies before the stream is zero. Then w_hat = scale_r * value. Any rate from 1 to 5 bits in
// eighths: at 2.25 bits, weights add 2, 2, 2 and 3 bits in turn.
//
// Why so. A code that hashes a window comes near the rate-distortion bound as the window grows, and
// decoding costs the same for any window up to a word (QTIP's has 16 bits, as its Viterbi search
// visits every state). A stream that runs on needs no start state and no tail biting. Down the rows
// it goes because error feedback couples columns and leaves rows independent: when a weight is
// coded, the error of its left neighbour was decided a column ago, so the search looks `rows`
// weights ahead and feedback is still column by column.
//
// Encoding is trellis_search.h. `survivors` trades time for error: at 2 bits .0690 with 512, .0669
// with 4096 on a unit Gaussian (bound .0625). The scale of a row is spread * rms / deviation, the
// spread shrunk or widened as each rate likes it and widened for what feedback adds.
//
// Layout. codes: U8 [strips * strip_bytes]; a strip is a sequence of little-endian 32-bit words
// whose bits run from the most significant down. The last strip is as high as the rows that remain,
// rounded up to a multiple of 64. scales: U8 [n_out], log: scale = base * 2^(-s / 16), 255 for
// zero. base: F32 [1].
// Bits: bits + 8 / n_in, and the rows that padding adds.
// References: QTIP (arXiv 2406.11235) for the bitshift trellis; Anderson and Mohan (1984) for the
// search.
#include "codecs/trellis.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/checked.h"
#include "codecs/codec.h"
#include "codecs/trellis_search.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kNumber, "", 1, 5, {}, "bits of a weight, in steps of 1/8"},
    {"survivors", ParamKind::kInt, "512", 1, 65536, {}, "paths that the search keeps"},
    {"rows", ParamKind::kInt, "256", 64, 4096, {}, "height of a strip, a multiple of 64"},
    {"spread", ParamKind::kNumber, "1", 0.25, 4, {}, "widens or shrinks the best scale"},
};

constexpr int64_t kHeightUnit = 64;
constexpr int kPeriod = 8;        // weights of 8 * bits bits together, a whole number
constexpr float kLargest = 1024;  // targets beyond are far out of reach of the levels

float scale_of(float base, std::byte code) {
  static const auto factors = [] {
    std::array<float, 256> all{};
    for (int i = 0; i < 255; ++i) {
      all[static_cast<size_t>(i)] = std::ldexp(kTrellisSteps[i % 16], -(i / 16));
    }
    return all;
  }();
  return base * factors[std::to_integer<size_t>(code)];
}

void scales_ref(float base, const std::byte* codes, int64_t n, float* scales, int64_t stride) {
  for (int64_t i = 0; i < round_up(n, kPanelRows); ++i) {
    scales[i / kPanelRows * stride + i % kPanelRows] = i < n ? scale_of(base, codes[i]) : 0;
  }
}

// The code of the nearest scale, by ratio.
uint8_t scale_code(float base, double scale) {
  if (!(scale > 0) || !(base > 0)) return 255;
  const double steps = std::round(16 * std::log2(base / scale));
  return static_cast<uint8_t>(std::clamp(steps, 0.0, 254.0));
}

class TrellisCodec final : public Codec {
 public:
  TrellisCodec(const spec::Params& params, int eighths)
      : spec_(print(params.canonical())),
        code_(trellis_code(eighths)),
        survivors_(static_cast<int>(params.integer("survivors"))),
        rows_(params.integer("rows")),
        spread_(params.number("spread")) {}

  std::string spec() const override { return spec_; }
  Claim claim() const override {
    // Fewer survivors and other spreads lose; more gain. Strips of 64 rows pad what tests code.
    const bool is_plain = survivors_ >= 512 && spread_ == 1;
    return {bits(), is_plain ? code_.mse : 0, "beam of 512 survivors"};
  }
  int64_t block_cols() const override { return 1; }
  int64_t block_rows() const override { return rows_; }
  int64_t group_cols(int64_t n_in) const override { return n_in; }
  bool decides_late() const override { return true; }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    const int64_t full = n_out / rows_, rest = n_out % rows_;
    const auto weights = checked_mul<int64_t>(n_out + rows_, n_in);
    if (!weights || *weights > std::numeric_limits<int64_t>::max() / 64) {
      return error("trellis: a matrix of {} x {} is too large", n_out, n_in);
    }
    const int64_t bytes = full * strip_words(rows_, n_in) + strip_words(height(rest), n_in);
    return std::vector<PlaneSpec>{{"codes", DType::kU8, {bytes * 4}},
                                  {"scales", DType::kU8, {n_out}},
                                  {"base", DType::kF32, {1}}};
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    const MatrixView<const float> w = source.w;
    const double widened = std::sqrt(1 + static_cast<double>(source.feedback) * code_.mse);
    std::vector<double> scales(static_cast<size_t>(w.rows));
    double largest = 0;
    for (int64_t i = 0; i < w.rows; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < w.cols; ++j) sum += static_cast<double>(w(i, j)) * w(i, j);
      const double rms = std::sqrt(sum / static_cast<double>(w.cols));
      double& scale = scales[static_cast<size_t>(i)];
      scale = rms * code_.spread * spread_ * widened / code_.deviation;
      if (!(scale < 1e36)) scale = 1e36;  // 127 times this is a float; NaN too ends here
      largest = std::max(largest, scale);
    }
    const auto base = static_cast<float>(largest);
    std::memcpy(codes.planes[2], &base, sizeof base);
    for (int64_t i = 0; i < w.rows; ++i) {
      codes.planes[1][i] = std::byte{scale_code(base, scales[static_cast<size_t>(i)])};
    }
  }

  void fit(MatrixView<const float>, std::span<const float>, int64_t, int64_t,
           const MutableCodes&) const override {}

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override;

  std::unique_ptr<ColumnCoder> column_coder(int64_t row, int64_t n_rows,
                                            const MutableCodes& codes) const override;

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const auto decode_rows =
        kernels().isa == Isa::kAvx512 ? trellis_decode_avx512 : trellis_decode_ref;
    while (n_rows > 0) {
      const int64_t first = row % rows_, n = std::min(n_rows, rows_ - first);
      const std::vector<float> scales = strip_scales(codes, row - first);
      TrellisStrip strip = strip_of(codes, row - first);
      strip.scales = scales.data();
      decode_rows(code_, strip, first, n, dst);
      row += n;
      n_rows -= n;
      dst += n * codes.n_in;
    }
  }

  int64_t decode_unit() const override { return 16; }  // lanes of a vector

  // A line of the stream has a column of up to 256 rows, and as many columns of them stay near.
  PanelTile panel_tile(int64_t n_in) const override {
    const int64_t group = n_in % 256 == 0 ? 256 : n_in % 128 == 0 ? 128 : 64;
    return {rows_ % 256 == 0 ? 256 : kHeightUnit, group, group};
  }

  void decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, const MutablePanels& out) const override {
    const Isa isa = n_cols % 4 == 0 ? kernels().isa : Isa::kRef;
    const auto levels_of = isa == Isa::kAvx512 ? trellis_levels_avx512
                           : isa == Isa::kAvx2 ? trellis_levels_avx2
                                               : trellis_levels_ref;
    (kernels().isa == Isa::kAvx512 ? trellis_scales_avx512 : scales_ref)(
        base_of(codes), codes.planes[1] + row, n_rows, out.scales, out.scales_stride);
    const int64_t group = panel_tile(codes.n_in).group, n_groups = ceil_div(n_cols, group);
    for (int64_t p = 0; n_groups > 1 && p * kPanelRows < n_rows; ++p) {
      float* scales = out.scales + p * out.scales_stride;
      for (int64_t g = 1; g < n_groups; ++g)
        std::copy_n(scales, kPanelRows, scales + g * kPanelRows);
    }
    for (int64_t r = 0; r < n_rows;) {
      const int64_t first = (row + r) % rows_, n = std::min(n_rows - r, rows_ - first);
      levels_of(code_, strip_of(codes, row + r - first), {first, n, col, n_cols},
                out.levels + r / kPanelRows * out.levels_stride, out.levels_stride);
      r += n;
    }
  }

  const TrellisCode& code() const { return code_; }
  int survivors() const { return survivors_; }
  double bits() const { return code_.eighths / 8.0; }

  static int64_t height(int64_t n_rows) { return ceil_div(n_rows, kHeightUnit) * kHeightUnit; }
  int64_t strip_words(int64_t height, int64_t n_in) const {
    return ceil_div<int64_t>(height / 8 * n_in * code_.eighths, 32);
  }

  // The stream of the strip that starts at row `row`; without scales.
  TrellisStrip strip_of(const CodesView& codes, int64_t row) const {
    const int64_t high = height(std::min(rows_, codes.n_out - row));
    return {reinterpret_cast<const uint8_t*>(codes.planes[0]) +
                row / rows_ * strip_words(rows_, codes.n_in) * 4,
            strip_words(high, codes.n_in), nullptr, high, codes.n_in};
  }

  static float base_of(const CodesView& codes) {
    float base;
    std::memcpy(&base, codes.planes[2], sizeof base);
    return std::isfinite(base) ? base : 0;
  }

  // The scales of its rows, zero for those that padding adds.
  std::vector<float> strip_scales(const CodesView& codes, int64_t row) const {
    const int64_t n = std::min(rows_, codes.n_out - row);
    std::vector<float> scales(static_cast<size_t>(height(n)));
    const float base = base_of(codes);
    for (int64_t i = 0; i < n; ++i) {
      scales[static_cast<size_t>(i)] = scale_of(base, codes.planes[1][row + i]);
    }
    return scales;
  }

 private:
  std::string spec_;
  const TrellisCode& code_;
  int survivors_;
  int64_t rows_;
  double spread_;
};

// Writes runs of bits, most significant first, into little-endian 32-bit words.
class StreamWriter {
 public:
  StreamWriter(std::byte* words, int64_t bit) : words_(words), bit_(bit) {}
  void put(uint32_t value, int n) {
    for (int taken = 0; taken < n;) {
      const int64_t at = bit_ / 32 * 4;
      const int room = 32 - static_cast<int>(bit_ % 32), now = std::min(room, n - taken);
      const uint64_t field = value >> (n - taken - now) & ((uint64_t{1} << now) - 1);
      const uint64_t mask = ((uint64_t{1} << now) - 1) << (room - now);
      uint32_t word;
      std::memcpy(&word, words_ + at, 4);
      word = static_cast<uint32_t>((word & ~mask) | field << (room - now));
      std::memcpy(words_ + at, &word, 4);
      taken += now;
      bit_ += now;
    }
  }

 private:
  std::byte* words_;
  int64_t bit_;
};

class TrellisColumnCoder final : public ColumnCoder {
 public:
  TrellisColumnCoder(const TrellisCodec& codec, int64_t row, int64_t n_rows, int64_t col,
                     const MutableCodes& codes)
      : n_rows_(n_rows),
        scales_(codec.strip_scales(codes, row)),
        height_(static_cast<int64_t>(scales_.size())),
        writer_(codes.planes[0] + (codec.strip_of(codes, row).words -
                                   reinterpret_cast<const uint8_t*>(codes.planes[0])),
                col * height_ / kPeriod * codec.code().eighths),
        run_(codec.code().run()),
        search_(codec.code(), codec.survivors(),
                window_before(codec.strip_of(codes, row),
                              col * height_ / kPeriod * codec.code().eighths)),
        column_(static_cast<size_t>(height_)),
        weights_(static_cast<size_t>(height_)) {
    double sum = 0;
    for (const float scale : scales_) sum += static_cast<double>(scale) * scale;
    const double mean = sum > 0 ? sum / static_cast<double>(n_rows) : 1;
    for (size_t i = 0; i < scales_.size(); ++i) {
      weights_[i] = static_cast<float>(static_cast<double>(scales_[i]) * scales_[i] / mean);
    }
  }

  void push(const Column& column, float* error) override {
    const bool has_before = search_.has_undecided();
    for (int64_t r = 0; r < height_; r += run_) {
      if (has_before) decide(r, error);
      std::array<float, kPeriod> target{}, weight{};
      for (int64_t i = r; i < std::min(r + run_, n_rows_); ++i) {
        const auto at = static_cast<size_t>(i);
        const float before = has_before ? error[i] : 0;
        const float wanted = std::fma(column.coupling, before, column.target[i]);
        const float units = scales_[at] > 0 ? wanted / scales_[at] : 0;
        const auto k = static_cast<size_t>(i - r);
        target[k] = units > -kLargest ? std::min(units, kLargest) : -kLargest;  // NaN too
        weight[k] = weights_[at] * column.importance;
      }
      search_.extend(target.data(), weight.data());
      for (int64_t i = r; i < std::min(r + run_, n_rows_); ++i) {
        column_[static_cast<size_t>(i)] = column.w[i];
      }
    }
  }

  void finish(float* error) override {
    for (int64_t r = 0; r < height_; r += run_) decide(r, error);
  }

 private:
  static uint32_t window_before(const TrellisStrip& strip, int64_t bit) {
    uint64_t wide = 0;
    for (int64_t word = bit / 32 - 1; word <= bit / 32; ++word) {
      uint32_t value = 0;
      if (word >= 0 && word < strip.n_words) std::memcpy(&value, strip.words + 4 * word, 4);
      wide = wide << 32 | value;
    }
    return static_cast<uint32_t>(wide >> (32 - bit % 32));
  }

  // Decides the run from row r on of the column before: its error is w - w_hat.
  void decide(int64_t r, float* error) {
    int8_t values[kPeriod];
    const TrellisSearch::Run run = search_.decide(values);
    writer_.put(run.bits, run.n_bits);
    for (int64_t i = r; i < std::min(r + run_, n_rows_); ++i) {
      const auto at = static_cast<size_t>(i);
      error[i] = column_[at] - scales_[at] * static_cast<float>(values[i - r]);
    }
  }

  int64_t n_rows_;
  std::vector<float> scales_;
  int64_t height_;
  StreamWriter writer_;
  int run_;
  TrellisSearch search_;
  std::vector<float> column_, weights_;  // the column before; what an error of a row costs
};

void TrellisCodec::encode(MatrixView<const float> w, int64_t row, int64_t col,
                          const MutableCodes& codes, MatrixView<float> w_hat) const {
  TrellisColumnCoder coder(*this, row, w.rows, col, codes);
  // Errors beside a column of zeros are the coded values themselves, to the bit.
  const std::vector<float> zeros(static_cast<size_t>(w.rows));
  std::vector<float> column(zeros), error(zeros);
  const auto keep = [&](int64_t j) {
    for (int64_t i = 0; i < w.rows; ++i) w_hat(i, j) = 0 - error[static_cast<size_t>(i)];
  };
  for (int64_t j = 0; j < w.cols; ++j) {
    for (int64_t i = 0; i < w.rows; ++i) column[static_cast<size_t>(i)] = w(i, j);
    coder.push({zeros.data(), column.data()}, error.data());
    if (j > 0) keep(j - 1);
  }
  coder.finish(error.data());
  keep(w.cols - 1);
}

std::unique_ptr<ColumnCoder> TrellisCodec::column_coder(int64_t row, int64_t n_rows,
                                                        const MutableCodes& codes) const {
  return std::make_unique<TrellisColumnCoder>(*this, row, n_rows, 0, codes);
}

// The last 32 bits up to those of the weight in row r and column j.
uint32_t window_at(const TrellisCode& code, const TrellisStrip& strip, int64_t r, int64_t j) {
  const auto word = [&](int64_t i) -> uint64_t {
    uint32_t value = 0;
    if (i >= 0 && i < strip.n_words) std::memcpy(&value, strip.words + 4 * i, 4);
    return value;
  };
  const int64_t period = (j * strip.height + r) / kPeriod;
  const int64_t end = period * code.eighths + code.end_bit(static_cast<int>(r % kPeriod) + 1);
  const uint64_t wide = word(end / 32 - 1) << 32 | word(end / 32);
  return static_cast<uint32_t>(wide >> (32 - end % 32));
}

constexpr std::string_view kExamples[] = {
    "trellis(2)",
    "trellis(1, survivors=64)",
    "trellis(1.5, survivors=16, rows=64)",
    "trellis(2.125, survivors=32)",
    "trellis(3, survivors=32, spread=0.9)",
    "trellis(3.875, survivors=8)",
    "trellis(4, survivors=24, rows=192)",
    "trellis(4.625, survivors=8)",
};

}  // namespace

void trellis_decode_ref(const TrellisCode& code, const TrellisStrip& strip, int64_t first,
                        int64_t n, float* dst) {
  for (int64_t r = first; r < first + n; ++r) {
    for (int64_t j = 0; j < strip.n_in; ++j) {
      *dst++ = strip.scales[r] * static_cast<float>(code.value(window_at(code, strip, r, j)));
    }
  }
}

void trellis_levels_ref(const TrellisCode& code, const TrellisStrip& strip,
                        const TrellisWindow& window, uint8_t* levels, int64_t stride) {
  for (int64_t i = 0; i < window.n_rows; ++i) {
    uint8_t* panel = levels + i / kPanelRows * stride + i % kPanelRows * 4;
    for (int64_t j = 0; j < window.n_cols; ++j) {
      const uint32_t bits = window_at(code, strip, window.row + i, window.col + j);
      panel[j / 4 * 64 + j % 4] = static_cast<uint8_t>(kPanelZero + code.value(bits));
    }
  }
}

extern const CodecInfo trellis_codec_info;
const CodecInfo trellis_codec_info = {
    .id = 2,
    .name = "trellis",
    .params = kParams,
    .summary = "each weight hashed from 32 bits of a stream; 1 to 5 bits in eighths",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      const double eighths = params.number("bits") * 8;
      if (eighths != std::floor(eighths)) {
        return usage_error("trellis: bits is {}, expected a multiple of 1/8",
                           params.number("bits"));
      }
      if (params.integer("rows") % kHeightUnit != 0) {
        return usage_error("trellis: rows is {}, expected a multiple of {}", params.integer("rows"),
                           kHeightUnit);
      }
      return std::make_unique<TrellisCodec>(params, static_cast<int>(eighths));
    },
    .examples = kExamples,
};

}  // namespace quern
