// SPDX-License-Identifier: Apache-2.0
// int: uniform integers with a scale per group of columns, the common ground of GPTQ, AWQ, QuaRot.
//
// Definition. Rows are cut into groups of `group` columns (0: the whole row). Within a group
//     w_hat = scale * (code - zero),   code in [0, 2^bits - 1],
// with scale a half-precision number rounded before any code is chosen. Symmetric: zero =
// 2^(bits-1), so q = code - zero runs over [-2^(bits-1), 2^(bits-1) - 1]. Asymmetric: zero is a
// whole number per group.
//
// Grids, named because they differ by 7 % at 4 bits and papers mix them:
//     absmax  scale = p * max|w| / (2^(bits-1) - 1)      QuaRot; the lowest code is rarely used
//     half    scale = p * max|w| / (2^(bits-1) - 1/2)    GPTQ; the positive end clips
//     signed  scale = p * m / -2^(bits-1), m the entry of largest magnitude (scale may be negative)
// and asymmetric: lo = min(0, min w), hi = max(0, max w), scale = p (hi - lo) / (2^bits - 1),
// zero = round(-lo / scale). clip=search takes the p in {1, 0.99, ..., 0.21} that minimises
// sum_j weight_j |w_j - w_hat_j|^norm over the group (QuaRot's search with norm 2.4); else p = 1.
//
// zeros=hqq (asymmetric) frees zero from whole numbers and moves it by half-quadratic splitting:
// errors e_j = w_j - w_hat_j, in steps of the scale, are split in a sparse part
//     s_j = sign(e_j) max(0, |e_j| - |e_j|^(0.7 - 1) / 10)
// and a rest that the weighted mean of zero absorbs,
//     zero = mean_j(code_j - w_j / scale + s_j),
// 20 times or until it rests; the zero of least sum_j weight_j |e_j| wins. (HQQ stops at the first
// step that does not help the matrix as a whole, 2 % worse in mean square on a Gaussian; and it
// works in the weights' own unit, where the sparse part of ordinary weights is always zero.)
//
// Layout. codes: U8 [n_out, ceil(n_in * bits / 8)], each row a little-endian bit stream. scales:
// F16 [n_out, groups]. zeros (asymmetric): U8, or F16 with zeros=hqq, [n_out, groups].
// Bits: bits + (16 + 8 or 16 if asymmetric) / group.
// Reference: GPTQ (arXiv 2210.17323) section 3, QuaRot (arXiv 2404.00456) section 4, HQQ
// (Badri and Shaji, 2023, mobiusml.github.io/hqq_blog).
#include "codecs/int.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checked.h"
#include "base/float_types.h"
#include "codecs/bit_stream.h"
#include "codecs/claims.h"
#include "codecs/interleaved.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kInt, "", 2, 8, {}, "bits of a code"},
    {"group", ParamKind::kInt, "128", 0, 1 << 20, {}, "columns that share a scale; 0: the row"},
    {"sym", ParamKind::kChoice, "true", 0, 0, "true|false", "zero in the middle of the codes"},
    {"grid", ParamKind::kChoice, "absmax", 0, 0, "absmax|half|signed", "where the ends lie"},
    {"clip", ParamKind::kChoice, "none", 0, 0, "none|search", "shrink the range of each group"},
    {"norm", ParamKind::kNumber, "2.4", 0.5, 8, {}, "exponent of the clip search"},
    {"zeros", ParamKind::kChoice, "whole", 0, 0, "whole|hqq", "zeros of asymmetric groups"},
};

constexpr std::string_view kMonteCarlo = "a million draws";
constexpr ClaimRow kClaims[] = {
    {"int(4)", 0.0138, kMonteCarlo},
    {"int(4, group=32)", 0.0094, kMonteCarlo},
    {"int(4, sym=false)", 0.0101, kMonteCarlo},
    {"int(3, sym=false)", 0.0466, kMonteCarlo},
    {"int(2, sym=false)", 0.2535, kMonteCarlo},
};

constexpr int kClipSteps = 80;  // p = 1 - i / 100
constexpr int kZeroSteps = 20;
constexpr double kNoLimit = std::numeric_limits<double>::infinity();
constexpr double kSparseNorm = 0.7, kSparseBeta = 10;  // HQQ's

// The nearest finite half.
float half_of(double value) {
  return f16_to_float(float_to_f16(static_cast<float>(std::clamp(value, -65504.0, 65504.0))));
}

// A scale as it is stored: not zero unless it is.
float stored_scale(double scale) {
  if (!(std::abs(scale) > 0)) return 0;
  const float half = half_of(scale);
  return half != 0 ? half : std::copysign(0x1p-24f, static_cast<float>(scale));
}

// Both as stored.
struct Grid {
  float scale = 0;
  float zero = 0;
};

class IntCodec final : public Codec {
 public:
  explicit IntCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        bits_(static_cast<int>(params.integer("bits"))),
        group_(params.integer("group")),
        is_symmetric_(params.flag("sym")),
        grid_(params.word("grid")),
        clip_search_(params.word("clip") == "search"),
        norm_(params.number("norm")),
        is_hqq_(params.word("zeros") == "hqq") {}

  std::string spec() const override { return spec_; }
  Claim claim() const override { return find_claim(kClaims, spec_, bits_); }
  int64_t block_cols() const override { return 1; }
  int64_t group_cols(int64_t n_in) const override {
    return std::max<int64_t>(1, group_ == 0 ? n_in : std::min(group_, n_in));
  }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    const int64_t groups = ceil_div(n_in, group_cols(n_in));
    std::vector<PlaneSpec> planes = {
        {"codes", DType::kU8, {n_out, row_bytes(n_in)}},
        {"scales", DType::kF16, {n_out, groups}},
    };
    if (!is_symmetric_) {
      planes.push_back({"zeros", is_hqq_ ? DType::kF16 : DType::kU8, {n_out, groups}});
    }
    return planes;
  }

  void fit(MatrixView<const float> w, std::span<const float> weight, int64_t row, int64_t col,
           const MutableCodes& codes) const override {
    const int64_t group = group_cols(codes.n_in);
    const int64_t groups = ceil_div(codes.n_in, group);
    for (int64_t i = 0; i < w.rows; ++i) {
      const Grid grid = choose_grid({w.row(i), static_cast<size_t>(w.cols)}, weight);
      const int64_t place = (row + i) * groups + col / group;
      put_half(codes.planes[1], place, grid.scale);
      if (is_hqq_) {
        put_half(codes.planes[2], place, grid.zero);
      } else if (!is_symmetric_) {
        codes.planes[2][place] = static_cast<std::byte>(grid.zero);
      }
    }
  }

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    const int64_t group = group_cols(codes.n_in);
    const int64_t groups = ceil_div(codes.n_in, group);
    for (int64_t i = 0; i < w.rows; ++i) {
      auto* stream =
          reinterpret_cast<uint8_t*>(codes.planes[0]) + (row + i) * row_bytes(codes.n_in);
      for (int64_t j = 0; j < w.cols; ++j) {
        const Grid grid = load(codes, (row + i) * groups + (col + j) / group);
        const int code = nearest_code(w(i, j), grid);
        put_code(stream, col + j, bits_, static_cast<unsigned>(code));
        w_hat(i, j) = value(code, grid);
      }
    }
  }

  bool lists_levels() const override { return true; }
  void levels(const CodesView& codes, int64_t row, int64_t col,
              std::vector<float>& values) const override {
    const int64_t group = group_cols(codes.n_in);
    const Grid grid = load(codes, row * ceil_div(codes.n_in, group) + col / group);
    values.clear();
    for (int code = 0; code < 1 << bits_; ++code) values.push_back(value(code, grid));
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const int64_t group = group_cols(codes.n_in);
    const int64_t groups = ceil_div(codes.n_in, group);
    const auto decode_row = decoder(codes.n_in, group);
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      decode_row({plane(codes, 0) + i * row_bytes(codes.n_in), plane(codes, 1) + i * groups * 2,
                  is_symmetric_ || is_hqq_ ? nullptr : plane(codes, 2) + i * groups,
                  is_hqq_ ? plane(codes, 2) + i * groups * 2 : nullptr, codes.n_in, group, bits_},
                 dst);
    }
  }

  // Codes less their zeros are bytes, unless both have 8 bits or zeros are fractions.
  std::shared_ptr<const RuntimeForm> runtime_form(const CodesView& codes,
                                                  Reading reading) const override {
    if (reading != Reading::kPanels || is_hqq_ || (bits_ == 8 && !is_symmetric_)) return nullptr;
    const int64_t groups = ceil_div(codes.n_in, group_cols(codes.n_in));
    InterleavedSource source;
    source.spec = spec_;
    source.n_out = codes.n_out;
    source.rows = {plane(codes, 0), nullptr, bits_, 0, codes.n_in};
    source.bits = bits_;
    source.group = group_cols(codes.n_in);
    source.set_integers(is_symmetric_ ? 1 << (bits_ - 1) : 0);
    if (!is_symmetric_) source.zeros = plane(codes, 2);
    source.read_scales = [&](int64_t row, float* scales) {
      kernels().f16_to_float(plane(codes, 1) + row * groups * 2, groups, scales);
    };
    return interleave(source);
  }

 private:
  using DecodeRow = void (*)(const IntRow&, float*);

  static const uint8_t* plane(const CodesView& codes, size_t i) {
    return reinterpret_cast<const uint8_t*>(codes.planes[i]);
  }

  int64_t row_bytes(int64_t n_in) const { return stream_bytes(n_in, bits_); }

  DecodeRow decoder(int64_t n_in, int64_t group) const {
    const bool whole_vectors = group % 16 == 0 || group >= n_in;
    const Isa isa = kernels().isa;
    if (isa == Isa::kAvx512 && whole_vectors) return int_decode_row_avx512;
    if (isa >= Isa::kAvx2 && whole_vectors) return int_decode_row_avx2;
    return int_decode_row_ref;
  }

  Grid load(const CodesView& codes, int64_t place) const {
    const float scale = half_at(codes.planes[1], place);
    if (is_symmetric_) return {scale, static_cast<float>(1 << (bits_ - 1))};
    if (is_hqq_) return {scale, half_at(codes.planes[2], place)};
    return {scale, static_cast<float>(std::to_integer<int>(codes.planes[2][place]))};
  }

  static float value(int code, const Grid& grid) {
    return grid.scale * (static_cast<float>(code) - grid.zero);
  }

  int nearest_code(float value, const Grid& grid) const {
    const float x = grid.scale == 0 ? 0 : value / grid.scale;
    // Whole zeros are added last, so that a tie does not depend on them.
    const float q = is_hqq_ ? std::nearbyint(x + grid.zero) : std::nearbyint(x) + grid.zero;
    if (!(q > 0)) return 0;  // NaN must not reach the cast
    return static_cast<int>(std::min(q, static_cast<float>((1 << bits_) - 1)));
  }

  Grid choose_grid(std::span<const float> w, std::span<const float> weight) const {
    float low = 0, high = 0;
    for (const float value : w) {
      low = std::min(low, value);
      high = std::max(high, value);
    }
    Grid best = make_grid(low, high, 1.0);
    if (low == high) return best;
    double shrink = 1, best_loss = clip_search_ ? loss(w, weight, best, norm_, kNoLimit) : 0;
    for (int i = 1; clip_search_ && i < kClipSteps; ++i) {
      const Grid grid = make_grid(low, high, 1.0 - i / 100.0);
      const double candidate = loss(w, weight, grid, norm_, best_loss);
      if (candidate < best_loss) {
        best_loss = candidate;
        best = grid;
        shrink = 1.0 - i / 100.0;
      }
    }
    return is_hqq_ ? move_zero(w, weight, best, -shrink * low / best.scale) : best;
  }

  // The best by the sum of magnitudes of the grid, of the same with `zero`, and of where that goes.
  Grid move_zero(std::span<const float> w, std::span<const float> weight, const Grid& grid,
                 double zero) const {
    Grid best = grid;
    double best_loss = loss(w, weight, best, 1, kNoLimit);
    float before = std::numeric_limits<float>::quiet_NaN();
    for (int step = 0; step <= kZeroSteps; ++step) {
      const Grid moved{grid.scale, half_of(zero)};
      if (moved.zero == before) break;
      before = moved.zero;
      const double moved_loss = loss(w, weight, moved, 1, best_loss);
      if (moved_loss < best_loss) {
        best_loss = moved_loss;
        best = moved;
      }
      double sum = 0, sum_weight = 0;
      for (size_t j = 0; j < w.size(); ++j) {
        const int code = nearest_code(w[j], moved);
        const double x = w[j] / grid.scale;
        const double error = x - (code - moved.zero), magnitude = std::abs(error);
        double sparse = 0;
        if (magnitude > 0) {
          sparse = magnitude - std::pow(magnitude, kSparseNorm - 1) / kSparseBeta;
        }
        const double importance = weight.empty() ? 1 : weight[j];
        sum += importance * (code - x + std::copysign(std::max(0.0, sparse), error));
        sum_weight += importance;
      }
      if (!(sum_weight > 0)) break;
      zero = sum / sum_weight;
    }
    return best;
  }

  Grid make_grid(double low, double high, double shrink) const {
    const int half_range = 1 << (bits_ - 1);
    Grid grid;
    if (!is_symmetric_) {
      grid.scale = stored_scale(shrink * (high - low) / (2 * half_range - 1));
      if (grid.scale == 0) return grid;
      const double zero = std::nearbyint(-shrink * low / grid.scale);
      grid.zero = static_cast<float>(std::clamp(zero, 0.0, 2.0 * half_range - 1));
      return grid;
    }
    grid.zero = static_cast<float>(half_range);
    const double largest = std::max(-low, high);
    if (grid_ == "signed") {
      grid.scale = stored_scale(shrink * (high > -low ? high : low) / -half_range);
    } else {
      grid.scale = stored_scale(shrink * largest / (half_range - (grid_ == "half" ? 0.5 : 1.0)));
    }
    return grid;
  }

  // Stops where it reaches `limit`.
  double loss(std::span<const float> w, std::span<const float> weight, const Grid& grid,
              double norm, double limit) const {
    double sum = 0;
    for (size_t j = 0; j < w.size() && sum < limit; ++j) {
      const double distance = std::abs(w[j] - value(nearest_code(w[j], grid), grid));
      const double importance = weight.empty() ? 1 : weight[j];
      if (norm == 1 || norm == 2) {
        sum += importance * (norm == 1 ? distance : distance * distance);
      } else {
        sum += importance * std::pow(distance, norm);
      }
    }
    return sum;
  }

  std::string spec_;
  int bits_;
  int64_t group_;
  bool is_symmetric_;
  std::string grid_;
  bool clip_search_;
  double norm_;
  bool is_hqq_;
};

constexpr std::string_view kExamples[] = {
    "int(8)",
    "int(4, group=64)",
    "int(3, group=64)",
    "int(2, group=32, clip=search)",
    "int(4, group=0, grid=half)",
    "int(4, group=32, grid=signed, clip=search, norm=2)",
    "int(5, group=48, sym=false)",
    "int(6, group=7, sym=false, clip=search)",
    "int(7, group=16)",
    "int(4)",
    "int(4, group=32)",
    "int(4, sym=false)",
    "int(3, sym=false)",
    "int(2, sym=false)",
    "int(4, group=64, sym=false, zeros=hqq)",
    "int(3, group=32, sym=false, clip=search, zeros=hqq)",
    "int(2, group=7, sym=false, zeros=hqq)",
};

}  // namespace

void int_decode_row_ref(const IntRow& row, float* dst) {
  for (int64_t i = 0; i < row.n; ++i) {
    const auto code = static_cast<float>(get_code(row.codes, i, row.bits));
    const int64_t g = i / row.group;
    auto zero = static_cast<float>(1 << (row.bits - 1));
    if (row.zeros != nullptr) zero = static_cast<float>(row.zeros[g]);
    if (row.half_zeros != nullptr) {
      zero = half_at(reinterpret_cast<const std::byte*>(row.half_zeros), g);
    }
    dst[i] = half_at(reinterpret_cast<const std::byte*>(row.scales), g) * (code - zero);
  }
}

extern const CodecInfo int_codec_info;
const CodecInfo int_codec_info = {
    .id = 1,
    .name = "int",
    .params = kParams,
    .summary = "uniform integers with a scale per group",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      if (params.flag("sym") && params.word("zeros") == "hqq") {
        return usage_error("int: zeros=hqq moves the zeros of asymmetric groups; add sym=false");
      }
      return std::make_unique<IntCodec>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
