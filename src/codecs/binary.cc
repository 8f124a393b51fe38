// SPDX-License-Identifier: Apache-2.0
// binary: signs with a scale per group, or with two vectors (OneBit).
//
// Definition. scale=group, with u = w - mean, the mean 0 or that of the group:
//     w_hat = mean + scale * sign(u),   scale = mean |u|,   sign(0) = 1
// scale=vectors:
//     w_hat = (g_i * h_j) * sign(w),   g h^T the best rank-one approximation of |W|
// which is OneBit's sign-value decomposition. g = A h / (h.h), h = A^T g / (g.g), A = |W|, in turn
// from column means on: the power method. |W| has no negative entry, so neither have g and h, and
// the best non-negative factors and the best of all are the same.
//
// Layout. signs: U8 [n_out, ceil(n_in / 8)], a bit stream per row, set for minus. scales: F16
// [n_out, groups], then means of the same shape if `mean`; or rows: F16 [n_out], cols: F16 [n_in].
// Bits: 1 + (16 or 32) / group; 1 + 16 / n_in + 16 / n_out.
// References: XNOR-Net (arXiv 1603.05279) section 3.1; OneBit (arXiv 2402.11295) section 3.
#include <algorithm>
#include <cmath>

#include "base/float_types.h"
#include "base/parallel.h"
#include "codecs/bit_planes.h"
#include "codecs/claims.h"
#include "codecs/stored_scalars.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"group", ParamKind::kInt, "128", 0, 1 << 20, {}, "columns that share a scale; 0: the row"},
    {"mean", ParamKind::kChoice, "false", 0, 0, "true|false", "groups have a mean too"},
    {"scale", ParamKind::kChoice, "group", 0, 0, "group|vectors", "a number or two vectors"},
};

constexpr std::string_view kLloydMax = "Lloyd-Max at 1 bit, 1 - 2 / pi";
constexpr ClaimRow kClaims[] = {
    {"binary", 0.3634, kLloydMax},
    {"binary(0)", 0.3634, kLloydMax},
    {"binary(scale=vectors)", 0.3634, kLloydMax},
};

constexpr int kPowerSteps = 100;
constexpr double kPowerGain = 1e-7;  // of the energy explained, below which steps end
constexpr float kLargestHalf = 65504;

double finite(float w) { return std::isfinite(w) ? w : 0; }

double energy_of(const std::vector<double>& values) {
  double energy = 0;
  for (const double x : values) energy += x * x;
  return energy;
}

struct RankOne {
  std::vector<double> g, h;
};

RankOne rank_one_of_magnitudes(MatrixView<const float> w) {
  constexpr int64_t kPiece = 64;
  RankOne r{std::vector<double>(static_cast<size_t>(w.rows), 1),
            std::vector<double>(static_cast<size_t>(w.cols))};
  double explained = 0;
  for (int step = 0; step < kPowerSteps; ++step) {
    const double g_energy = energy_of(r.g);
    if (!(g_energy > 0)) break;
    parallel_for(w.cols, kPiece, [&](int64_t begin, int64_t end) {
      std::fill(r.h.begin() + begin, r.h.begin() + end, 0.0);
      for (int64_t i = 0; i < w.rows; ++i) {
        const double g = r.g[static_cast<size_t>(i)] / g_energy;
        for (int64_t j = begin; j < end; ++j) {
          r.h[static_cast<size_t>(j)] += g * std::abs(finite(w(i, j)));
        }
      }
    });
    const double h_energy = energy_of(r.h);
    if (!(h_energy > 0)) break;
    parallel_for(w.rows, kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < w.cols; ++j) {
          sum += r.h[static_cast<size_t>(j)] * std::abs(finite(w(i, j)));
        }
        r.g[static_cast<size_t>(i)] = sum / h_energy;
      }
    });
    // With g the best for h the energy explained is |g|^2 |h|^2.
    const double energy = energy_of(r.g) * h_energy;
    if (energy <= explained * (1 + kPowerGain)) break;
    explained = energy;
  }
  return r;
}

// Writes halves of factor * values.
void put_halves(const std::vector<double>& values, double factor, std::byte* halves) {
  for (size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<float>(std::min<double>(values[i] * factor, kLargestHalf));
    put_half(halves, static_cast<int64_t>(i), value);
  }
}

class BinaryCodec final : public Codec {
 public:
  explicit BinaryCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        has_vectors_(params.word("scale") == "vectors"),
        has_mean_(params.flag("mean")),
        bits_({"signs"}, false, has_vectors_ ? 0 : params.integer("group")),
        scales_("scale", ScalarForm::kF16, ScalarUse::kScale, 1),
        means_("mean", ScalarForm::kF16, ScalarUse::kShift, 2),
        cols_("col", ScalarForm::kF16, ScalarUse::kScale, 2) {}

  std::string spec() const override { return spec_; }
  Claim claim() const override { return find_claim(kClaims, spec_, 1); }
  int64_t block_cols() const override { return 1; }
  int64_t group_cols(int64_t n_in) const override { return bits_.group_cols(n_in); }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    std::vector<PlaneSpec> more;
    if (has_vectors_) {
      more = {{"rows", DType::kF16, {n_out}}, {"cols", DType::kF16, {n_in}}};
    } else {
      scales_.add_planes(n_out, bits_.n_groups(n_in), more);
      if (has_mean_) means_.add_planes(n_out, bits_.n_groups(n_in), more);
    }
    return bits_.planes(spec_, n_out, n_in, more);
  }

  // Both vectors get the same largest entry, so that neither leaves the range of halves first.
  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    if (!has_vectors_) return;
    const RankOne r = rank_one_of_magnitudes(source.w);
    const double g = *std::max_element(r.g.begin(), r.g.end());
    const double h = *std::max_element(r.h.begin(), r.h.end());
    const double balance = g > 0 && h > 0 ? std::sqrt(h / g) : 0;
    put_halves(r.g, balance, codes.planes[1]);
    put_halves(r.h, balance > 0 ? 1 / balance : 0, codes.planes[2]);
  }

  void fit(MatrixView<const float> w, std::span<const float>, int64_t row, int64_t col,
           const MutableCodes& codes) const override {
    if (has_vectors_) return;
    const auto n = static_cast<double>(w.cols);
    for (int64_t i = 0; i < w.rows; ++i) {
      const int64_t place =
          (row + i) * bits_.n_groups(codes.n_in) + col / bits_.group_cols(codes.n_in);
      double mean = 0, scale = 0;
      for (int64_t j = 0; j < w.cols && has_mean_; ++j) mean += finite(w(i, j)) / n;
      for (int64_t j = 0; j < w.cols; ++j) scale += std::abs(finite(w(i, j)) - mean) / n;
      scales_.store(codes, place, scales_.round(codes, place, scale));
      if (has_mean_) means_.store(codes, place, means_.round(codes, place, mean));
    }
  }

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    bits_.encode(w, row, col, codes, levels_of(), factors(codes, col, w.cols), w_hat);
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    bits_.decode(codes, row, n_rows, levels_of(), factors(codes, 0, codes.n_in), dst);
  }

  PanelTile panel_tile(int64_t n_in) const override {
    return has_vectors_ ? PanelTile() : bits_.panel_tile(n_in);
  }

  void decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, const MutablePanels& out) const override {
    if (has_vectors_ || !bits_.has_panels(codes.n_in)) {
      return Codec::decode_panels(codes, row, n_rows, col, n_cols, out);
    }
    if (has_mean_) return bits_.decode_panels(codes, row, n_rows, col, n_cols, levels_of(), out);
    const auto scales_of = [this](const CodesView& c, int64_t i, int64_t first, int64_t n,
                                  float* scales) {
      scales_.load(c, i * bits_.n_groups(c.n_in) + first, n, scales);
    };
    bits_.decode_panels(codes, row, n_rows, col, n_cols, {1, -1}, scales_of, out);
  }

 private:
  BitPlanes::NumbersOf levels_of() const {
    return [this](const CodesView& codes, int64_t row, int64_t first, int64_t n, float* levels) {
      const int64_t place = has_vectors_ ? row : row * bits_.n_groups(codes.n_in) + first;
      thread_local std::vector<float> scales, means;
      scales.resize(static_cast<size_t>(n));
      means.assign(scales.size(), 0);
      scales_.load(codes, place, n, scales.data());
      if (has_mean_) means_.load(codes, place, n, means.data());
      for (size_t g = 0; g < scales.size(); ++g) {
        levels[2 * g] = means[g] + scales[g];
        levels[2 * g + 1] = means[g] - scales[g];
      }
    };
  }

  // Of columns [col, col + n), or nothing.
  std::vector<float> factors(const CodesView& codes, int64_t col, int64_t n) const {
    std::vector<float> factors(has_vectors_ ? static_cast<size_t>(n) : 0);
    if (has_vectors_) cols_.load(codes, col, n, factors.data());
    return factors;
  }

  std::string spec_;
  bool has_vectors_, has_mean_;
  BitPlanes bits_;
  StoredScalars scales_;  // or the vector of rows
  StoredScalars means_, cols_;
};

constexpr std::string_view kExamples[] = {
    "binary",     "binary(0)",
    "binary(7)",  "binary(32, mean=true)",
    "binary(64)", "binary(scale=vectors)",
};

}  // namespace

extern const CodecInfo binary_codec_info;
const CodecInfo binary_codec_info = {
    .id = 41,
    .name = "binary",
    .params = kParams,
    .summary = "signs with a scale per group, or with two vectors (OneBit)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      if (params.word("scale") == "vectors" && params.flag("mean")) {
        return usage_error("binary: mean=true is for scale=group; two vectors have no mean");
      }
      return std::make_unique<BinaryCodec>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
