// SPDX-License-Identifier: Apache-2.0
// pvq: pyramid vector quantization. The direction of a group of weights is a whole-numbered point
// of fixed L1 norm, numbered exactly, so that no codebook is stored at any rate; its length is one
// of a few levels.
//
// Definition. A group of `dim` columns is coded as y in Z^dim, sum |y_i| = pulses, and a level g:
//     w_hat = (scale * level_g / |y|) * y,
// scale one per row, levels one set per matrix. The level stands for the projection <w, y> / |y|,
// not for |w|, which would cost 3 % of the error at two bits. y is found by pvq_search.h, in the
// metric of a block by pvq_metric.h, and numbered by pvq_index.h.
//
// Rates. With b = ceil(log2 N(dim, pulses)), a group takes b + gain_bits bits. Given `bits` instead
// of pulses, the parameters with the least expected error within dim * bits are taken. On a unit
// Gaussian it is, to 3 % at 0.4 to 4 pulses a column (less than said at fewer pulses),
//     1.56 * 2^(-2 log2 N / (dim - 1)) + lloyd(gain_bits) / (2 dim).
// spec() names what was taken, so files do not depend on this choice.
//
// Levels are Lloyd's of the projections of simulated Gaussian groups in rows of this length; they
// are stored, so that no decoder needs to compute them alike. A last group of fewer columns is
// padded with zeros, and its levels are times sqrt(columns / dim).
//
// Layout. codes: U8 [n_out, ceil(groups (b + gain_bits) / 8)], a bit stream per row: index, then
// level, of each group. scales: F16 [n_out]. levels: F16 [2^gain_bits]. The runtime reads the
// points themselves (pulses.h). Reference: arXiv 2410.16926; Fischer, A pyramid vector quantizer,
// IEEE Trans. IT 32(4), 1986.
#include "codecs/pvq.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/checked.h"
#include "base/float_types.h"
#include "base/random.h"
#include "codecs/pulses.h"
#include "codecs/pvq_index.h"
#include "codecs/row_scale.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kNumber, "0", 0, 8, {}, "most bits a weight; 0: what pulses say, or 2"},
    {"dim", ParamKind::kInt, "0", 0, PvqIndex::kMaxDim, {}, "columns of a group; 0: the best"},
    {"pulses", ParamKind::kInt, "0", 0, PvqIndex::kMaxPulses, {}, "L1 norm; 0: what bits allow"},
    {"gain_bits", ParamKind::kInt, "-1", -1, 8, {}, "bits of a level; -1: the best"},
};

struct Shape {
  int dim = 0, pulses = 0, gain_bits = 0;
  double mse = 0;  // expected on a unit Gaussian
};

double log2_of(Wide n) { return std::log2(static_cast<double>(n)); }

// Error of Lloyd's quantizer of so many bits on a unit Gaussian.
double lloyd(int bits) {
  constexpr double kErrors[] = {1, 0.36338, 0.11748, 0.03455, 0.0095, 0.0025};
  return bits < 6 ? kErrors[bits] : 0.0025 * std::pow(0.25, bits - 5);
}

double expected_mse(int dim, int gain_bits, Wide n) {
  const double shape = dim > 1 ? 1.56 * std::exp2(-2 * log2_of(n) / (dim - 1)) : 0;
  return std::min(1.0, shape) + lloyd(gain_bits) / (2 * dim);
}

// The most pulses whose index takes `bits`; 0 if one is too many.
int most_pulses(const std::vector<Wide>& counts, int dim, int bits) {
  if (bits < 1) return 0;
  int pulses = 0;
  const Wide limit = bits >= 128 ? ~Wide{0} - 1 : Wide{1} << bits;
  while (pulses < PvqIndex::kMaxPulses &&
         counts[PvqIndex::place(dim, pulses + 1, PvqIndex::kMaxPulses)] <= limit) {
    ++pulses;
  }
  return pulses;
}

// The best shape within `bits` a weight; dim 0 and gain_bits -1 are open.
Shape best_shape(double bits, int dim, int gain_bits) {
  const auto counts = PvqIndex::counts(PvqIndex::kMaxDim, PvqIndex::kMaxPulses);
  Shape best;
  for (const int d : {8, 16, 32, 64, 128, dim}) {
    if (d == 0 || (dim != 0 && d != dim)) continue;
    const int budget = static_cast<int>(std::floor(bits * d + 1e-6));
    for (int g = std::max(gain_bits, 0); g <= (gain_bits < 0 ? 6 : gain_bits); ++g) {
      const int pulses = most_pulses(counts, d, std::min(budget - g, 128));
      if (pulses == 0) continue;
      const Wide n = counts[PvqIndex::place(d, pulses, PvqIndex::kMaxPulses)];
      const double mse = expected_mse(d, g, n);
      if (best.dim == 0 || mse < best.mse) best = {d, pulses, g, mse};
    }
  }
  return best;
}

// Lloyd's levels for the samples, ascending. They start where the best density of levels for a
// Gaussian, the cube root of its own, would have them: quantiles, sqrt(3) times as far from the
// mean.
std::vector<double> lloyd_levels(std::vector<double> samples, int n_levels) {
  constexpr int kRounds = 200;
  std::sort(samples.begin(), samples.end());
  const auto n = static_cast<double>(samples.size());
  const double mean = std::accumulate(samples.begin(), samples.end(), 0.0) / n;
  std::vector<double> levels;
  for (int l = 0; l < n_levels; ++l) {
    const double quantile = samples[static_cast<size_t>(n * (l + 0.5) / n_levels)];
    levels.push_back(mean + std::sqrt(3.0) * (quantile - mean));
  }
  for (int round = 0; round < kRounds; ++round) {
    std::vector<double> sums(levels.size()), counts(levels.size());
    size_t l = 0;
    for (const double sample : samples) {
      while (l + 1 < levels.size() && sample > (levels[l] + levels[l + 1]) / 2) ++l;
      sums[l] += sample;
      counts[l] += 1;
    }
    double moved = 0;
    for (l = 0; l < levels.size(); ++l) {
      if (counts[l] == 0) continue;
      moved = std::max(moved, std::abs(sums[l] / counts[l] - levels[l]));
      levels[l] = sums[l] / counts[l];
    }
    if (moved < 1e-6 * levels.back()) break;
  }
  return levels;
}

// Bits [bit, bit + n) of a stream, n <= 128, of which `n_bytes` may be read.
Wide get_bits(const uint8_t* stream, int64_t n_bytes, int64_t bit, int n) {
  const int64_t first = bit / 8;
  const int shift = static_cast<int>(bit % 8);
  Wide value = 0;
  std::memcpy(&value, stream + first, static_cast<size_t>(std::min<int64_t>(16, n_bytes - first)));
  value >>= shift;
  if (shift + n > 128) value |= static_cast<Wide>(stream[first + 16]) << (128 - shift);
  return n == 128 ? value : value & ((Wide{1} << n) - 1);
}

// Writes n bits and none beside them.
void put_bits(uint8_t* stream, int64_t bit, int n, Wide value) {
  for (int done = 0; done < n;) {
    const int shift = static_cast<int>((bit + done) % 8), width = std::min(8 - shift, n - done);
    const unsigned mask = ((1u << width) - 1u) << shift;
    const unsigned field = static_cast<unsigned>(value >> done) << shift & mask;
    uint8_t& byte = stream[(bit + done) / 8];
    byte = static_cast<uint8_t>((byte & ~mask) | field);
    done += width;
  }
}

class PvqCodec final : public Codec {
 public:
  PvqCodec(std::string text, const Shape& shape)
      : spec_(std::move(text)),
        shape_(shape),
        index_(PvqIndex::shared(shape.dim, shape.pulses)),
        index_bits_(index_->index_bits()),
        group_bits_(index_bits_ + shape.gain_bits) {}

  std::string spec() const override { return spec_; }
  Claim claim() const override {
    const bool is_known = shape_.dim >= 8 && shape_.pulses <= 4 * shape_.dim;
    return {static_cast<double>(group_bits_) / shape_.dim, is_known ? shape_.mse : 0,
            "law fitted to simulated groups; arXiv 2410.16926 has none"};
  }
  int64_t block_cols() const override { return shape_.dim; }
  int64_t group_cols(int64_t n_in) const override { return std::max<int64_t>(1, n_in); }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    return std::vector<PlaneSpec>{{"codes", DType::kU8, {n_out, row_bytes(n_in)}},
                                  {"scales", DType::kF16, {n_out}},
                                  {"levels", DType::kF16, {int64_t{1} << shape_.gain_bits}}};
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    fit_row_scales(source, shape_.mse, 1.0, codes.planes[1]);
    std::byte* dst = codes.planes[2];
    for (const double level : simulated_levels(source.w.cols)) {
      const uint16_t half = float_to_f16(static_cast<float>(level));
      std::memcpy(dst, &half, 2);
      dst += 2;
    }
  }

  void fit(MatrixView<const float>, std::span<const float>, int64_t, int64_t,
           const MutableCodes&) const override {}

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    const auto dim = static_cast<size_t>(shape_.dim);
    const int64_t groups = ceil_div<int64_t>(w.cols, shape_.dim);
    const std::vector<float> levels = levels_of(codes);
    std::vector<float> x(static_cast<size_t>(groups) * dim), gains(static_cast<size_t>(groups));
    std::vector<int16_t> y(x.size());
    for (int64_t i = 0; i < w.rows; ++i) {
      std::copy_n(w.row(i), w.cols, x.begin());
      pvq_search(kernels().isa)(x.data(), groups, shape_.dim, shape_.pulses, y.data(),
                                gains.data());
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t width = std::min<int64_t>(shape_.dim, w.cols - g * shape_.dim);
        store(&y[static_cast<size_t>(g) * dim], gains[static_cast<size_t>(g)], levels, row + i,
              col / shape_.dim + g, width, codes, w_hat.row(i) + g * shape_.dim);
      }
    }
  }

  // Searches for the nearest point plainly, then moves its pulses by the metric.
  void encode_block(MatrixView<const float> w, MatrixView<const float> metric, int64_t row,
                    int64_t col, const MutableCodes& codes,
                    MatrixView<float> w_hat) const override {
    if (is_plain(metric)) return encode(w, row, col, codes, w_hat);
    const int dim = shape_.dim;
    AlignedVector<float> values;
    const PvqMetric padded = padded_metric(metric, values);
    const std::vector<float> levels = levels_of(codes);
    std::vector<float> x(static_cast<size_t>(w.rows * dim)), gains(static_cast<size_t>(w.rows));
    std::vector<int16_t> y(x.size());
    for (int64_t i = 0; i < w.rows; ++i)
      std::copy_n(w.row(i), w.cols, &x[static_cast<size_t>(i * dim)]);
    pvq_search(kernels().isa)(x.data(), w.rows, dim, shape_.pulses, y.data(), gains.data());
    pvq_refine(kernels().isa)(padded, x.data(), w.rows, y.data(), gains.data());
    for (int64_t i = 0; i < w.rows; ++i) {
      store(&y[static_cast<size_t>(i * dim)], gains[static_cast<size_t>(i)], levels, row + i,
            col / dim, w.cols, codes, w_hat.row(i));
    }
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const std::vector<float> levels = levels_of(codes);
    std::vector<int16_t> y(static_cast<size_t>(codes.n_in));
    std::vector<float> steps(static_cast<size_t>(ceil_div<int64_t>(codes.n_in, shape_.dim)));
    for (int64_t i = row; i < row + n_rows; ++i) {
      read_row(codes, levels, i, y.data(), steps.data());
      size_t j = 0;
      for (const float step : steps) {
        const size_t end = std::min(j + static_cast<size_t>(shape_.dim), y.size());
        for (; j < end; ++j) *dst++ = step * static_cast<float>(y[j]);
      }
    }
  }

  std::shared_ptr<const RuntimeForm> runtime_form(const CodesView& codes,
                                                  Reading reading) const override {
    const std::vector<float> levels = levels_of(codes);
    return pulses_form(
        codes.n_out, codes.n_in, shape_.dim, reading,
        [&](int64_t row, int16_t* y, float* steps) { read_row(codes, levels, row, y, steps); });
  }

 private:
  int64_t row_bytes(int64_t n_in) const {
    return ceil_div<int64_t>(ceil_div<int64_t>(n_in, shape_.dim) * group_bits_, 8);
  }

  // The points y[n_in] of a row and the step of each group: w_hat = step * y.
  void read_row(const CodesView& codes, const std::vector<float>& levels, int64_t row, int16_t* y,
                float* steps) const {
    const int64_t n_bytes = row_bytes(codes.n_in);
    const auto* stream = reinterpret_cast<const uint8_t*>(codes.planes[0]) + row * n_bytes;
    const float scale = row_scale(codes.planes[1], row);
    int16_t point[PvqIndex::kMaxDim];
    int64_t bit = 0;
    for (int64_t j = 0; j < codes.n_in; j += shape_.dim, bit += group_bits_) {
      const int64_t width = std::min<int64_t>(shape_.dim, codes.n_in - j);
      const Wide level = get_bits(stream, n_bytes, bit + index_bits_, shape_.gain_bits);
      index_->point_of(get_bits(stream, n_bytes, bit, index_bits_), point);
      *steps++ = step_of(point, scale * narrowing(width) * levels[static_cast<size_t>(level)]);
      y = std::copy_n(point, width, y);
    }
  }

  // Whether the metric is a multiple of the plain distance.
  static bool is_plain(MatrixView<const float> metric) {
    for (int64_t i = 0; i < metric.rows; ++i) {
      for (int64_t j = 0; j < metric.cols; ++j) {
        if (metric(i, j) != (i == j ? metric(0, 0) : 0)) return false;
      }
    }
    return true;
  }

  // A copy of unit mean diagonal, so that no size of a Hessian leaves the range of floats.
  PvqMetric padded_metric(MatrixView<const float> metric, AlignedVector<float>& values) const {
    const auto width = static_cast<int>(metric.cols);
    PvqMetric padded{nullptr, shape_.dim, width};
    values.resize(static_cast<size_t>(shape_.dim * padded.stride()));
    double trace = 0;
    for (int i = 0; i < width; ++i) trace += metric(i, i);
    const auto scale = static_cast<float>(trace > 0 ? width / trace : 1);
    for (int i = 0; i < width; ++i) {
      float* dst = &values[static_cast<size_t>(i * padded.stride())];
      for (int j = 0; j < width; ++j) dst[j] = scale * metric(i, j);
    }
    padded.values = values.data();
    return padded;
  }

  // Stores a point and the level nearest to `gain` for the group of a row; what they decode to goes
  // to dst[width].
  void store(const int16_t* point, float gain, const std::vector<float>& levels, int64_t row,
             int64_t group, int64_t width, const MutableCodes& codes, float* dst) const {
    auto* stream = reinterpret_cast<uint8_t*>(codes.planes[0]) + row * row_bytes(codes.n_in);
    const float unit = row_scale(codes.planes[1], row) * narrowing(width);
    const int level = nearest_level(levels, unit, gain);
    const int64_t bit = group * group_bits_;
    put_bits(stream, bit, index_bits_, index_->index_of(point));
    put_bits(stream, bit + index_bits_, shape_.gain_bits, static_cast<unsigned>(level));
    const float step = step_of(point, unit * levels[static_cast<size_t>(level)]);
    for (int64_t i = 0; i < width; ++i) dst[i] = step * static_cast<float>(point[i]);
  }

  // What the levels of a group of `width` columns are multiplied by.
  float narrowing(int64_t width) const {
    return std::sqrt(static_cast<float>(width) / static_cast<float>(shape_.dim));
  }

  std::vector<float> levels_of(const CodesView& codes) const {
    std::vector<float> levels;
    for (int64_t l = 0; l < int64_t{1} << shape_.gain_bits; ++l) {
      levels.push_back(row_scale(codes.planes[2], l));
    }
    return levels;
  }

  static int nearest_level(const std::vector<float>& levels, float unit, float gain) {
    size_t best = 0;
    for (size_t l = 1; l < levels.size(); ++l) {
      if (std::abs(unit * levels[l] - gain) < std::abs(unit * levels[best] - gain)) best = l;
    }
    return static_cast<int>(best);
  }

  // length / |y|
  float step_of(const int16_t* y, float length) const {
    int norm = 0;
    for (int i = 0; i < shape_.dim; ++i) norm += y[i] * y[i];
    return length / std::sqrt(static_cast<float>(norm));
  }

  // Levels for groups of Gaussian rows of n_in columns and mean square 1.
  std::vector<double> simulated_levels(int64_t n_in) const {
    const int64_t groups = std::max<int64_t>(512, 32768 / shape_.dim);
    const double rest = static_cast<double>(std::max<int64_t>(0, n_in - shape_.dim));
    Random random(0);
    std::vector<float> x(static_cast<size_t>(groups * shape_.dim));
    std::vector<float> gains(static_cast<size_t>(groups));
    std::vector<int16_t> y(x.size());
    for (float& value : x) value = static_cast<float>(random.gaussian());
    pvq_search(kernels().isa)(x.data(), groups, shape_.dim, shape_.pulses, y.data(), gains.data());
    std::vector<double> samples;
    for (int64_t g = 0; g < groups; ++g) {
      // The rest of the row: chi squared of so many degrees, as a Gaussian.
      double energy = std::max(0.0, rest + std::sqrt(2 * rest) * random.gaussian());
      for (int i = 0; i < shape_.dim; ++i) {
        energy += std::pow(x[static_cast<size_t>(g * shape_.dim + i)], 2);
      }
      const double mean_square = energy / (rest + shape_.dim);
      samples.push_back(gains[static_cast<size_t>(g)] / std::sqrt(mean_square));
    }
    return lloyd_levels(std::move(samples), 1 << shape_.gain_bits);
  }

  std::string spec_;
  Shape shape_;
  std::shared_ptr<const PvqIndex> index_;
  int index_bits_, group_bits_;
};

Result<std::unique_ptr<Codec>> make_pvq(const spec::Params& params) {
  double bits = params.number("bits");
  const auto dim = static_cast<int>(params.integer("dim"));
  const auto pulses = static_cast<int>(params.integer("pulses"));
  const auto gain_bits = static_cast<int>(params.integer("gain_bits"));
  Shape shape{dim, pulses, gain_bits, 0};
  if (pulses > 0) {
    if (bits > 0) return usage_error("pvq: bits and pulses both say the rate; give one of them");
    if (dim == 0 || gain_bits < 0) {
      return usage_error("pvq: with pulses={} dim and gain_bits must be given too", pulses);
    }
    if (!PvqIndex::fits(dim, pulses)) {
      return usage_error("pvq: dim={}, pulses={} has more than 2^128 points", dim, pulses);
    }
    const auto counts = PvqIndex::counts(dim, pulses);
    shape.mse = expected_mse(dim, gain_bits, counts.back());
  } else {
    if (bits == 0) bits = 2;
    shape = best_shape(bits, dim, gain_bits);
    if (shape.dim == 0) return usage_error("pvq: no code of {} bits a weight", bits);
  }
  spec::Call call{"pvq", {}};
  for (const auto& [name, value] : {std::pair<std::string, int>{"dim", shape.dim},
                                    {"pulses", shape.pulses},
                                    {"gain_bits", shape.gain_bits}}) {
    spec::Value number{
        spec::Value::Kind::kNumber, static_cast<double>(value), std::to_string(value), {}};
    call.args.push_back({name, std::move(number)});
  }
  return std::make_unique<PvqCodec>(print(call), shape);
}

constexpr std::string_view kExamples[] = {
    "pvq(2)",
    "pvq(1)",
    "pvq(3.25)",
    "pvq(4, dim=16)",
    "pvq(dim=8, pulses=5, gain_bits=2)",
    "pvq(dim=7, pulses=20, gain_bits=0)",
    "pvq(dim=24, pulses=15, gain_bits=3)",
};

}  // namespace

PvqSearch pvq_search(Isa isa) {
  if (isa == Isa::kAvx512) return pvq_search_avx512;
  return isa == Isa::kAvx2 ? pvq_search_avx2 : pvq_search_ref;
}

PvqRefine pvq_refine(Isa isa) {
  if (isa == Isa::kAvx512) return pvq_refine_avx512;
  return isa == Isa::kAvx2 ? pvq_refine_avx2 : pvq_refine_ref;
}

extern const CodecInfo pvq_codec_info;
const CodecInfo pvq_codec_info = {
    .id = 11,
    .name = "pvq",
    .params = kParams,
    .summary = "direction as a point of a pyramid, length as a level; any rate",
    .make = make_pvq,
    .examples = kExamples,
};

}  // namespace quern
