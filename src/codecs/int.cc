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
// Layout. codes: U8 [n_out, ceil(n_in * bits / 8)], each row a little-endian bit stream. scales:
// F16 [n_out, groups]. zeros (asymmetric): U8 [n_out, groups].
// Bits: bits + (16 + 8 * asymmetric) / group.
// Reference: GPTQ (arXiv 2210.17323) section 3, QuaRot (arXiv 2404.00456) section 4.
#include "codecs/int.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "base/float_types.h"
#include "codecs/bit_stream.h"
#include "codecs/claims.h"
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

// A scale as it is stored: finite and non-zero in half precision.
uint16_t stored_scale(double scale) {
  const double magnitude = std::abs(scale);
  if (!(magnitude > 0)) return 0;
  const uint16_t half = float_to_f16(static_cast<float>(std::min(magnitude, 65504.0)));
  return static_cast<uint16_t>(std::max<uint16_t>(half, 1) | (scale < 0 ? 0x8000 : 0));
}

struct Grid {
  uint16_t scale = 0;
  int zero = 0;
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
        norm_(params.number("norm")) {}

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
    if (!is_symmetric_) planes.push_back({"zeros", DType::kU8, {n_out, groups}});
    return planes;
  }

  void fit(MatrixView<const float> w, std::span<const float> weight, int64_t row, int64_t col,
           const MutableCodes& codes) const override {
    const int64_t group = group_cols(codes.n_in);
    const int64_t groups = ceil_div(codes.n_in, group);
    for (int64_t i = 0; i < w.rows; ++i) {
      const Grid grid = choose_grid({w.row(i), static_cast<size_t>(w.cols)}, weight);
      const int64_t place = (row + i) * groups + col / group;
      std::memcpy(codes.planes[1] + place * 2, &grid.scale, 2);
      if (!is_symmetric_) codes.planes[2][place] = static_cast<std::byte>(grid.zero);
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
        const int64_t place = (row + i) * groups + (col + j) / group;
        uint16_t half;
        std::memcpy(&half, codes.planes[1] + place * 2, 2);
        const int zero =
            is_symmetric_ ? 1 << (bits_ - 1) : std::to_integer<int>(codes.planes[2][place]);
        const float scale = f16_to_float(half);
        const int code = nearest_code(w(i, j), scale, zero);
        put_code(stream, col + j, bits_, static_cast<unsigned>(code));
        w_hat(i, j) = scale * static_cast<float>(code - zero);
      }
    }
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const int64_t group = group_cols(codes.n_in);
    const int64_t groups = ceil_div(codes.n_in, group);
    const auto decode_row = decoder(codes.n_in, group);
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      decode_row({plane(codes, 0) + i * row_bytes(codes.n_in), plane(codes, 1) + i * groups * 2,
                  is_symmetric_ ? nullptr : plane(codes, 2) + i * groups, codes.n_in, group, bits_},
                 dst);
    }
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

  int nearest_code(float value, float scale, int zero) const {
    if (scale == 0) return zero;
    const float q = std::nearbyint(value / scale) + static_cast<float>(zero);
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
    if (!clip_search_ || low == high) return best;
    double best_loss = loss(w, weight, best);
    for (int i = 1; i < kClipSteps; ++i) {
      const Grid grid = make_grid(low, high, 1.0 - i / 100.0);
      const double candidate = loss(w, weight, grid);
      if (candidate < best_loss) {
        best_loss = candidate;
        best = grid;
      }
    }
    return best;
  }

  Grid make_grid(double low, double high, double shrink) const {
    const int half_range = 1 << (bits_ - 1);
    Grid grid;
    if (!is_symmetric_) {
      grid.scale = stored_scale(shrink * (high - low) / (2 * half_range - 1));
      if (grid.scale == 0) return grid;
      const double zero = std::nearbyint(-shrink * low / f16_to_float(grid.scale));
      grid.zero = static_cast<int>(std::clamp(zero, 0.0, 2.0 * half_range - 1));
      return grid;
    }
    grid.zero = half_range;
    const double largest = std::max(-low, high);
    if (grid_ == "signed") {
      grid.scale = stored_scale(shrink * (high > -low ? high : low) / -half_range);
    } else {
      grid.scale = stored_scale(shrink * largest / (half_range - (grid_ == "half" ? 0.5 : 1.0)));
    }
    return grid;
  }

  double loss(std::span<const float> w, std::span<const float> weight, const Grid& grid) const {
    const float scale = f16_to_float(grid.scale);
    double sum = 0;
    for (size_t j = 0; j < w.size(); ++j) {
      const int code = nearest_code(w[j], scale, grid.zero);
      const double distance = std::abs(w[j] - scale * static_cast<float>(code - grid.zero));
      sum += (weight.empty() ? 1.0 : weight[j]) *
             (norm_ == 2 ? distance * distance : std::pow(distance, norm_));
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
};

}  // namespace

void int_decode_row_ref(const IntRow& row, float* dst) {
  for (int64_t i = 0; i < row.n; ++i) {
    const int code = static_cast<int>(get_code(row.codes, i, row.bits));
    const int64_t g = i / row.group;
    uint16_t half;
    std::memcpy(&half, row.scales + 2 * g, 2);
    const int zero = row.zeros != nullptr ? row.zeros[g] : 1 << (row.bits - 1);
    dst[i] = f16_to_float(half) * static_cast<float>(code - zero);
  }
}

extern const CodecInfo int_codec_info;
const CodecInfo int_codec_info = {
    .id = 1,
    .name = "int",
    .params = kParams,
    .summary = "uniform integers with a scale per group",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      return std::make_unique<IntCodec>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
