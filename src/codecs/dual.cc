// SPDX-License-Identifier: Apache-2.0
// dual: the sum of two planes of zeros and ones, each with a scale: DB-LLM's dual binarisation.
//
// Definition. Per group, with bits b1 and b2,
//     w_hat = a1 b1 + a2 b2,   levels 0, a1, a2 and a1 + a2,
// the level nearest to w. fit tries steps s = max|w| 2^(-i / 3), i = 0..12, for a1 = 2 s, a2 = -s,
// which is rounding w / s to -1, 0, 1 or 2, and (flip) for the same with opposite signs, which puts
// the longer side where the longer tail is. Then least squares for the chosen bits and the nearest
// levels are taken in turn while the error falls: of both scales, or of the step (scales=equal).
// (DB-LLM finds b1, then b2, by thresholds; for a1 > -a2 > 0 that is the nearest level too.)
//
// Layout. first, second: U8 [n_out, ceil(n_in / 8)], the bits b1 and b2 (bit_planes.h). scales: F16
// [n_out, 2 * groups], a1 and a2 of each group.
// Bits: 2 + 32 / group. Reference: DB-LLM (arXiv 2402.11960) section 3.2.
#include <algorithm>
#include <cmath>

#include "codecs/bit_planes.h"
#include "codecs/claims.h"
#include "codecs/magnitudes.h"
#include "codecs/stored_scalars.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"group", ParamKind::kInt, "64", 0, 1 << 20, {}, "columns that share scales; 0: the row"},
    {"scales", ParamKind::kChoice, "free", 0, 0, "free|equal", "both free, or a1 = -2 a2"},
    {"flip", ParamKind::kChoice, "true", 0, 0, "true|false", "the longer side may be minus"},
    {"weighted", ParamKind::kChoice, "true", 0, 0, "true|false", "columns count by importance"},
};

constexpr std::string_view kIntegrals = "integrals over its cells";
constexpr ClaimRow kClaims[] = {
    {"dual(0, flip=false)", 0.1375, kIntegrals},
    {"dual(0, scales=equal, flip=false)", 0.1490, kIntegrals},
};

constexpr int kSteps = 12, kStepsPerOctave = 3;
constexpr int kRefinements = 50;
constexpr double kLeastGain = 1e-6;

struct Pair {
  double a1 = 0, a2 = 0;
  LevelSums sums(const SortedValues& values) const { return values.sums({0, a1, a2, a1 + a2}); }
};

// The least squares scales for the bits behind the sums; what they do not determine stays.
Pair free_scales(const LevelSums& sums, const Pair& before) {
  const double n1 = sums.weight[1] + sums.weight[3], n2 = sums.weight[2] + sums.weight[3];
  const double n12 = sums.weight[3], determinant = n1 * n2 - n12 * n12;
  const double s1 = sums.sum[1] + sums.sum[3], s2 = sums.sum[2] + sums.sum[3];
  if (determinant > 1e-12 * n1 * n2) {
    return {(n2 * s1 - n12 * s2) / determinant, (n1 * s2 - n12 * s1) / determinant};
  }
  if (n12 > 0) return before;  // the planes are equal: only the sum is known
  return {n1 > 0 ? s1 / n1 : before.a1, n2 > 0 ? s2 / n2 : before.a2};
}

Pair equal_scales(const LevelSums& sums, const Pair& before) {
  const double weight = 4 * sums.weight[1] + sums.weight[2] + sums.weight[3];
  if (!(weight > 0)) return before;
  const double step = (2 * sums.sum[1] - sums.sum[2] + sums.sum[3]) / weight;
  return {2 * step, -step};
}

class DualCodec final : public Codec {
 public:
  explicit DualCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        is_free_(params.word("scales") == "free"),
        may_flip_(params.flag("flip")),
        is_weighted_(params.flag("weighted")),
        bits_({"first", "second"}, false, params.integer("group")),
        scales_("scale", ScalarForm::kF16, ScalarUse::kShift, 2) {}

  std::string spec() const override { return spec_; }
  Claim claim() const override { return find_claim(kClaims, spec_, 2); }
  int64_t block_cols() const override { return 1; }
  int64_t group_cols(int64_t n_in) const override { return bits_.group_cols(n_in); }
  bool weighs_columns() const override { return is_weighted_; }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    std::vector<PlaneSpec> scales;
    scales_.add_planes(n_out, 2 * bits_.n_groups(n_in), scales);
    return bits_.planes(spec_, n_out, n_in, scales);
  }

  void fit(MatrixView<const float> w, std::span<const float> weight, int64_t row, int64_t col,
           const MutableCodes& codes) const override {
    if (!is_weighted_) weight = {};
    for (int64_t i = 0; i < w.rows; ++i) {
      const Pair pair =
          fit_group(SortedValues(weighed_values({w.row(i), static_cast<size_t>(w.cols)}, weight)));
      const int64_t place =
          2 * ((row + i) * bits_.n_groups(codes.n_in) + col / bits_.group_cols(codes.n_in));
      scales_.store(codes, place, scales_.round(codes, place, pair.a1));
      scales_.store(codes, place + 1, scales_.round(codes, place + 1, pair.a2));
    }
  }

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    bits_.encode(w, row, col, codes, levels_of(), {}, w_hat);
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    bits_.decode(codes, row, n_rows, levels_of(), {}, dst);
  }

  PanelTile panel_tile(int64_t n_in) const override { return bits_.panel_tile(n_in); }

  void decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, const MutablePanels& out) const override {
    if (!bits_.has_panels(codes.n_in)) {
      return Codec::decode_panels(codes, row, n_rows, col, n_cols, out);
    }
    bits_.decode_panels(codes, row, n_rows, col, n_cols, levels_of(), out);
  }

 private:
  Pair fit_group(const SortedValues& values) const {
    Pair best;
    double best_loss = -1;
    for (const double sign : {1.0, -1.0}) {
      if (sign < 0 && !may_flip_) break;
      Pair pair;
      double loss = -1;
      for (int i = 0; i <= kSteps; ++i) {
        const double s =
            sign * values.largest() * std::exp2(-static_cast<double>(i) / kStepsPerOctave);
        const double candidate = Pair{2 * s, -s}.sums(values).loss;
        if (loss >= 0 && candidate >= loss) continue;
        loss = candidate;
        pair = {2 * s, -s};
      }
      loss = refine(values, pair);
      if (best_loss >= 0 && loss >= best_loss) continue;
      best_loss = loss;
      best = pair;
    }
    return best;
  }

  double refine(const SortedValues& values, Pair& pair) const {
    LevelSums sums = pair.sums(values);
    for (int i = 0; i < kRefinements; ++i) {
      const Pair next = is_free_ ? free_scales(sums, pair) : equal_scales(sums, pair);
      const LevelSums next_sums = next.sums(values);
      if (!(next_sums.loss < sums.loss * (1 - kLeastGain))) break;
      pair = next;
      sums = next_sums;
    }
    return sums.loss;
  }

  BitPlanes::NumbersOf levels_of() const {
    return [this](const CodesView& codes, int64_t row, int64_t first, int64_t n, float* levels) {
      thread_local std::vector<float> scales;
      scales.resize(static_cast<size_t>(2 * n));
      scales_.load(codes, 2 * (row * bits_.n_groups(codes.n_in) + first), 2 * n, scales.data());
      for (size_t k = 0; k < scales.size(); k += 2, levels += 4) {
        levels[0] = 0;
        levels[1] = scales[k];
        levels[2] = scales[k + 1];
        levels[3] = scales[k] + scales[k + 1];
      }
    };
  }

  std::string spec_;
  bool is_free_, may_flip_, is_weighted_;
  BitPlanes bits_;
  StoredScalars scales_;
};

constexpr std::string_view kExamples[] = {
    "dual",
    "dual(0)",
    "dual(0, flip=false)",
    "dual(0, scales=equal, flip=false)",
    "dual(128, scales=equal)",
    "dual(7)",
};

}  // namespace

extern const CodecInfo dual_codec_info;
const CodecInfo dual_codec_info = {
    .id = 43,
    .name = "dual",
    .params = kParams,
    .summary = "the sum of two planes of zeros and ones with a scale each (DB-LLM)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      return std::make_unique<DualCodec>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
