// SPDX-License-Identifier: Apache-2.0
// ternary: weights -1, 0 and 1 times a scale, in 1.6 or 2 bits: what BitNet b1.58 stores.
//
// Definition. w_hat = scale * t, t = 0 where |w| <= scale / 2, else the sign of w. This is BitNet's
// clip(round(w / scale), -1, 1) with ties to even. The scale of a group, or of the whole matrix:
//     absmean  mean |w| (BitNet's; its floor of 1e-5 is left out, zeros need none)
//     mse      the one of least sum_j weight_j (w_j - w_hat_j)^2. For the k largest magnitudes
//              taken as ones the best scale is their mean, so that one pass over the sorted
//              magnitudes finds the optimum. Of a matrix, magnitudes are first put into bins of a
//              128th of a power of two.
//
// Layout. packing=base3: codes: U8 [n_out, ceil(n_in / 5)], five digits t + 1 of base 3 in a byte:
// with n = sum_k digit_k 3^(4 - k), byte = ceil(256 n / 243), which gives the digits up by
// multiplication (ternary.h). packing=planes: nonzero and minus, a bit stream each (bit_planes.h).
// scales: F16 [n_out, groups]; or scale: F32 [1].
// Bits: 1.6 or 2, and 16 / group. The entropy of three equally likely values is 1.585.
// References: BitNet b1.58 (arXiv 2402.17764); ggml's TQ1_0 for the byte.
#include "codecs/ternary.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "base/parallel.h"
#include "codecs/bit_planes.h"
#include "codecs/claims.h"
#include "codecs/interleaved.h"
#include "codecs/magnitudes.h"
#include "codecs/stored_scalars.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"group", ParamKind::kInt, "128", 0, 1 << 20, {}, "columns that share a scale; 0: the row"},
    {"scope", ParamKind::kChoice, "group", 0, 0, "group|matrix", "what shares a scale"},
    {"scale", ParamKind::kChoice, "mse", 0, 0, "mse|absmean", "rule of the scale"},
    {"packing", ParamKind::kChoice, "base3", 0, 0, "base3|planes", "1.6 or 2 bits"},
    {"weighted", ParamKind::kChoice, "true", 0, 0, "true|false", "columns count by importance"},
};

constexpr std::string_view kIntegrals = "integrals over its cells";
constexpr ClaimRow kClaims[] = {
    {"ternary(0)", 0.1902, kIntegrals},
    {"ternary(scope=matrix)", 0.1902, kIntegrals},
    {"ternary(scope=matrix, packing=planes)", 0.1902, kIntegrals},
    {"ternary(scope=matrix, scale=absmean)", 0.2631, kIntegrals},
};

constexpr int kPerByte = 5;
constexpr unsigned kPowers[kPerByte] = {1, 3, 9, 27, 81};

unsigned get_trit(const uint8_t* row, int64_t col) {
  return 3 * (kPowers[col % kPerByte] * row[col / kPerByte] & 255u) >> 8;
}

void put_trit(uint8_t* row, int64_t col, unsigned digit) {
  const unsigned before = get_trit(row, col), place = kPowers[kPerByte - 1 - col % kPerByte];
  uint8_t& byte = row[col / kPerByte];
  const unsigned number = 243u * byte / 256 + digit * place - before * place;
  byte = static_cast<uint8_t>((256 * number + 242) / 243);
}

class TernaryCodec final : public Codec {
 public:
  explicit TernaryCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        is_matrix_(params.word("scope") == "matrix"),
        is_absmean_(params.word("scale") == "absmean"),
        is_packed_(params.word("packing") == "base3"),
        is_weighted_(params.flag("weighted")),
        bits_({"nonzero", "minus"}, false, is_matrix_ ? 0 : params.integer("group")),
        scales_("scale", ScalarForm::kF16, ScalarUse::kScale, is_packed_ ? 1 : 2) {}

  std::string spec() const override { return spec_; }
  Claim claim() const override { return find_claim(kClaims, spec_, is_packed_ ? 1.6 : 2); }
  int64_t block_cols() const override { return 1; }
  int64_t group_cols(int64_t n_in) const override { return bits_.group_cols(n_in); }
  bool weighs_columns() const override { return is_weighted_ && !is_absmean_; }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    std::vector<PlaneSpec> scales;
    if (is_matrix_) {
      scales.push_back({"scale", DType::kF32, {1}});
    } else {
      scales_.add_planes(n_out, bits_.n_groups(n_in), scales);
    }
    QUERN_ASSIGN(std::vector<PlaneSpec> planes, bits_.planes(spec_, n_out, n_in, scales));
    if (is_packed_) {
      planes.erase(planes.begin());
      planes[0] = {"codes", DType::kU8, {n_out, row_bytes(n_in)}};
    }
    return planes;
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    if (!is_matrix_) return;
    const std::span<const float> weight = is_weighted_ ? source.weight : std::span<const float>();
    // By the sign, the exponent and seven bits of the mantissa of a magnitude.
    std::vector<WeighedValue> bins(size_t{1} << 15);
    for (int64_t i = 0; i < source.w.rows; ++i) {
      for (int64_t j = 0; j < source.w.cols; ++j) {
        const float magnitude = std::abs(source.w(i, j));
        if (!std::isfinite(magnitude)) continue;
        const double h = weight.empty() ? 1 : weight[static_cast<size_t>(j)];
        WeighedValue& bin = bins[std::bit_cast<uint32_t>(magnitude) >> 16];
        bin.value += h * magnitude;
        bin.weight += h;
      }
    }
    std::erase_if(bins, [](const WeighedValue& bin) { return !(bin.weight > 0); });
    for (WeighedValue& bin : bins) bin.value /= bin.weight;
    const auto scale = static_cast<float>(scale_of(bins));
    std::memcpy(codes.planes[is_packed_ ? 1 : 2], &scale, 4);
  }

  void fit(MatrixView<const float> w, std::span<const float> weight, int64_t row, int64_t col,
           const MutableCodes& codes) const override {
    if (is_matrix_) return;
    if (!is_weighted_) weight = {};
    for (int64_t i = 0; i < w.rows; ++i) {
      auto values = weighed_values({w.row(i), static_cast<size_t>(w.cols)}, weight);
      const int64_t place =
          (row + i) * bits_.n_groups(codes.n_in) + col / bits_.group_cols(codes.n_in);
      scales_.store(codes, place, scales_.round(codes, place, scale_of(values)));
    }
  }

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    if (!is_packed_) return bits_.encode(w, row, col, codes, levels_of(), {}, w_hat);
    const int64_t group = bits_.group_cols(codes.n_in);
    for (int64_t i = 0; i < w.rows; ++i) {
      auto* stream =
          reinterpret_cast<uint8_t*>(codes.planes[0]) + (row + i) * row_bytes(codes.n_in);
      float scale = 0;
      for (int64_t j = 0; j < w.cols; ++j) {
        if (j == 0 || (col + j) % group == 0) {
          load_scales(codes, row + i, (col + j) / group, 1, &scale);
        }
        const bool is_one = std::abs(w(i, j)) > 0.5f * scale && std::isfinite(w(i, j));
        const unsigned digit = !is_one ? 1 : w(i, j) > 0 ? 2 : 0;
        put_trit(stream, col + j, digit);
        w_hat(i, j) = is_one ? std::copysign(scale, w(i, j)) : 0;
      }
    }
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    if (!is_packed_) return bits_.decode(codes, row, n_rows, levels_of(), {}, dst);
    const int64_t group = bits_.group_cols(codes.n_in), groups = bits_.n_groups(codes.n_in);
    const bool whole_vectors = group % 16 == 0 || group >= codes.n_in;
    const Isa isa = kernels().isa;
    const auto decode_row = whole_vectors && isa == Isa::kAvx512 ? trits_decode_row_avx512
                            : whole_vectors && isa == Isa::kAvx2 ? trits_decode_row_avx2
                                                                 : trits_decode_row_ref;
    std::vector<float> scales(static_cast<size_t>(groups));
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      load_scales(codes, i, 0, groups, scales.data());
      const auto* stream = plane(codes, 0) + i * row_bytes(codes.n_in);
      decode_row({stream, scales.data(), codes.n_in, group}, dst);
    }
  }

  // Exact: two bits a weight.
  std::shared_ptr<const RuntimeForm> runtime_form(const CodesView& codes,
                                                  Reading reading) const override {
    const int64_t n_in = codes.n_in;
    if (reading != Reading::kPanels || !bits_.has_panels(n_in)) return nullptr;
    InterleavedSource source;
    source.spec = spec_;
    source.n_out = codes.n_out;
    source.bits = 2;
    source.group = bits_.group_cols(n_in);
    source.read_scales = [&](int64_t row, float* scales) {
      load_scales(codes, row, 0, bits_.n_groups(n_in), scales);
    };
    Matrix<uint8_t> digits;
    if (is_packed_) {
      digits = read_digits(codes);
      source.rows = {digits.data(), nullptr, 8, 0, n_in};
      source.set_integers(1);
    } else {
      source.rows = {plane(codes, 0), plane(codes, 1), 1, 1, n_in};
      constexpr int kOfBits[4] = {0, 1, 0, -1};
      for (size_t code = 0; code < 4; ++code) {
        source.values[code] = static_cast<float>(kOfBits[code]);
        source.levels[code] = static_cast<uint8_t>(kPanelZero + kOfBits[code]);
      }
    }
    return interleave(source);
  }

 private:
  static int64_t row_bytes(int64_t n_in) { return ceil_div<int64_t>(n_in, kPerByte); }
  static const uint8_t* plane(const CodesView& codes, size_t i) {
    return reinterpret_cast<const uint8_t*>(codes.planes[i]);
  }

  static Matrix<uint8_t> read_digits(const CodesView& codes) {
    constexpr int64_t kRows = 16;
    uint8_t of_byte[256][kPerByte];
    for (unsigned i = 0; i < 256; ++i) {
      const auto byte = static_cast<uint8_t>(i);
      for (int k = 0; k < kPerByte; ++k) of_byte[i][k] = static_cast<uint8_t>(get_trit(&byte, k));
    }
    Matrix<uint8_t> digits(codes.n_out, codes.n_in);
    parallel_for(codes.n_out, kRows, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint8_t* stream = plane(codes, 0) + i * row_bytes(codes.n_in);
        for (int64_t j = 0; j < codes.n_in; j += kPerByte) {
          const int64_t n = std::min<int64_t>(kPerByte, codes.n_in - j);
          std::memcpy(digits.row(i) + j, of_byte[stream[j / kPerByte]], static_cast<size_t>(n));
        }
      }
    });
    return digits;
  }

  double scale_of(std::span<WeighedValue> values) const {
    if (!is_absmean_) return split_magnitudes(values, InnerMagnitude::kZero).outer;
    double sum = 0, weight = 0;
    for (const WeighedValue& v : values) {
      sum += v.weight * std::abs(v.value);
      weight += v.weight;
    }
    return weight > 0 ? sum / weight : 0;
  }

  // Of groups [first, first + n) of a row.
  void load_scales(const CodesView& codes, int64_t row, int64_t first, int64_t n,
                   float* scales) const {
    if (is_matrix_) {
      std::memcpy(scales, codes.planes[is_packed_ ? 1 : 2], 4);
    } else {
      scales_.load(codes, row * bits_.n_groups(codes.n_in) + first, n, scales);
    }
  }

  BitPlanes::NumbersOf levels_of() const {
    return [this](const CodesView& codes, int64_t row, int64_t first, int64_t n, float* levels) {
      thread_local std::vector<float> scales;
      scales.resize(static_cast<size_t>(n));
      load_scales(codes, row, first, n, scales.data());
      for (const float scale : scales) {
        levels[0] = levels[2] = 0;
        levels[1] = scale;
        levels[3] = -scale;
        levels += 4;
      }
    };
  }

  std::string spec_;
  bool is_matrix_, is_absmean_, is_packed_, is_weighted_;
  BitPlanes bits_;
  StoredScalars scales_;
};

constexpr std::string_view kExamples[] = {
    "ternary",
    "ternary(0)",
    "ternary(64, packing=planes)",
    "ternary(7)",
    "ternary(7, packing=planes)",
    "ternary(32, scale=absmean, packing=planes)",
    "ternary(scope=matrix)",
    "ternary(scope=matrix, packing=planes)",
    "ternary(scope=matrix, scale=absmean)",
};

}  // namespace

void trits_decode_row_ref(const TritRow& row, float* dst) {
  for (int64_t i = 0; i < row.n; ++i) {
    const float scale = row.scales[i / row.group];
    const float values[3] = {-scale, 0, scale};
    dst[i] = values[get_trit(row.codes, i)];
  }
}

extern const CodecInfo ternary_codec_info;
const CodecInfo ternary_codec_info = {
    .id = 40,
    .name = "ternary",
    .params = kParams,
    .summary = "-1, 0 and 1 times a scale, 1.6 or 2 bits (BitNet b1.58)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      return std::make_unique<TernaryCodec>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
