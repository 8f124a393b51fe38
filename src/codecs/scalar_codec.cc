// SPDX-License-Identifier: Apache-2.0
#include "codecs/scalar_codec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "base/checked.h"

namespace quern {
namespace {

constexpr int kClipSteps = 80;  // p = 1 - i / 100
constexpr int kEntropySteps = 100;
constexpr double kEntropyReach = 0.1 / 1.84813738;  // 1.848... = Phi^-1(0.9677083)

// The side info of one group as it is stored, and what that says.
struct GroupFit {
  std::array<uint16_t, 2> stored_scale{};
  std::array<float, 2> scale{};
  uint16_t stored_shift = 0;
  float shift = 0;
};

// The middle one; of an even number the mean of both.
double median_of(std::span<const float> values, std::vector<float>& scratch) {
  scratch.assign(values.begin(), values.end());
  const auto middle = scratch.begin() + static_cast<std::ptrdiff_t>(scratch.size() / 2);
  std::nth_element(scratch.begin(), middle, scratch.end());
  if (scratch.size() % 2 == 1) return *middle;
  return (static_cast<double>(*middle) + *std::max_element(scratch.begin(), middle)) / 2;
}

class ScalarCodec final : public Codec {
 public:
  explicit ScalarCodec(ScalarCodecOptions options)
      : o_(std::move(options)),
        split_(o_.table.bits()),
        scales_("scale", o_.scale, ScalarUse::kScale, split_.high > 0 ? 2 : 1),
        shifts_("shift", o_.shift_form, ScalarUse::kShift, plane_count()) {}

  std::string spec() const override { return o_.spec; }
  Claim claim() const override { return o_.claim; }
  int64_t block_cols() const override { return 1; }
  int64_t group_cols(int64_t n_in) const override {
    return std::max<int64_t>(1, o_.group == 0 ? n_in : std::min(o_.group, n_in));
  }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    std::vector<PlaneSpec> planes = {
        {"codes", DType::kU8, {n_out, stream_bytes(n_in, split_.low)}}};
    if (split_.high > 0) {
      planes.push_back({"high", DType::kU8, {n_out, stream_bytes(n_in, split_.high)}});
    }
    scales_.add_planes(n_out, groups(n_in) * o_.sides, planes);
    if (has_shift()) shifts_.add_planes(n_out, groups(n_in), planes);
    return planes;
  }

  // What the forms of the side info share over a matrix follows the rules without the searches.
  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    if (o_.scale < ScalarForm::kE4M3 && (!has_shift() || o_.shift_form < ScalarForm::kE4M3)) return;
    std::vector<float> scales, shifts, u, scratch;
    const int64_t group = group_cols(codes.n_in);
    for (int64_t i = 0; i < source.w.rows; ++i) {
      for (int64_t col = 0; col < source.w.cols; col += group) {
        const float* w = source.w.row(i) + col;
        u.assign(w, w + std::min(group, source.w.cols - col));
        if (has_shift()) {
          const double middle = median_of(u, scratch);
          for (float& x : u) x = static_cast<float>(x - middle);
          const double reach =
              o_.shift == ShiftRule::kEntropy ? kEntropyReach * largest(u, 0, 1) : 0;
          shifts.push_back(static_cast<float>(std::abs(middle) + reach));
        }
        for (int side = 0; side < o_.sides; ++side) {
          scales.push_back(static_cast<float>(rule_scale(u, side)));
        }
      }
    }
    scales_.fit_matrix(scales, codes);
    if (has_shift()) shifts_.fit_matrix(shifts, codes);
  }

  void fit(MatrixView<const float> w, std::span<const float> weight, int64_t row, int64_t col,
           const MutableCodes& codes) const override {
    std::vector<float> u, scratch;
    std::vector<double> n_log_n;
    if (o_.shift == ShiftRule::kEntropy) n_log_n = make_n_log_n(w.cols);
    for (int64_t i = 0; i < w.rows; ++i) {
      const std::span<const float> entries{w.row(i), static_cast<size_t>(w.cols)};
      const int64_t place = (row + i) * groups(codes.n_in) + col / group_cols(codes.n_in);
      GroupFit best;
      if (o_.shift == ShiftRule::kEntropy) {
        best = search_entropy(entries, weight, codes, place, n_log_n, u, scratch);
      } else {
        const double shift = has_shift() ? median_of(entries, scratch) : 0;
        best = fit_shifted(entries, weight, codes, place, shift, u);
      }
      for (int side = 0; side < o_.sides; ++side) {
        scales_.store(codes, place * o_.sides + side, best.stored_scale[side]);
      }
      if (has_shift()) shifts_.store(codes, place, best.stored_shift);
    }
  }

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    const int64_t group = group_cols(codes.n_in);
    for (int64_t i = 0; i < w.rows; ++i) {
      auto* low = stream(codes, 0, row + i, split_.low);
      auto* high = split_.high > 0 ? stream(codes, 1, row + i, split_.high) : nullptr;
      for (int64_t j = 0; j < w.cols;) {
        const int64_t g = (col + j) / group;
        const GroupFit fit = load(codes, (row + i) * groups(codes.n_in) + g);
        for (const int64_t end = std::min(w.cols, (g + 1) * group - col); j < end; ++j) {
          const float u = w(i, j) - fit.shift;
          const unsigned code = code_of(u, fit);
          put_code(low, col + j, split_.low, code & ((1u << split_.low) - 1u));
          if (high != nullptr) put_code(high, col + j, split_.high, code >> split_.low);
          w_hat(i, j) = scaled_level(code, fit);
          if (has_shift()) w_hat(i, j) += fit.shift;
        }
      }
    }
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const int64_t n_groups = groups(codes.n_in);
    std::vector<float> scales(static_cast<size_t>(n_groups * o_.sides));
    std::vector<float> shifts(has_shift() ? static_cast<size_t>(n_groups) : 0);
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      for (size_t k = 0; k < scales.size(); ++k) {
        scales[k] = scales_.load(codes, i * n_groups * o_.sides + static_cast<int64_t>(k));
      }
      for (size_t k = 0; k < shifts.size(); ++k) {
        shifts[k] = shifts_.load(codes, i * n_groups + static_cast<int64_t>(k));
      }
      table_decode_row({stream(codes, 0, i, split_.low),
                        split_.high > 0 ? stream(codes, 1, i, split_.high) : nullptr,
                        o_.table.levels(), scales.data(), has_shift() ? shifts.data() : nullptr,
                        codes.n_in, group_cols(codes.n_in), o_.table.bits(), o_.sides},
                       dst);
    }
  }

 private:
  bool has_shift() const { return o_.shift != ShiftRule::kNone; }
  int64_t groups(int64_t n_in) const { return ceil_div(n_in, group_cols(n_in)); }

  // Planes before those of the shifts.
  size_t plane_count() const {
    std::vector<PlaneSpec> planes;
    scales_.add_planes(1, 1, planes);
    return planes.size() + (split_.high > 0 ? 2 : 1);
  }

  static const uint8_t* stream(const CodesView& codes, size_t plane, int64_t row, int bits) {
    return reinterpret_cast<const uint8_t*>(codes.planes[plane]) +
           row * stream_bytes(codes.n_in, bits);
  }
  static uint8_t* stream(const MutableCodes& codes, size_t plane, int64_t row, int bits) {
    return reinterpret_cast<uint8_t*>(codes.planes[plane]) + row * stream_bytes(codes.n_in, bits);
  }

  GroupFit load(const CodesView& codes, int64_t place) const {
    GroupFit fit;
    for (int side = 0; side < o_.sides; ++side) {
      fit.scale[side] = scales_.load(codes, place * o_.sides + side);
    }
    if (has_shift()) fit.shift = shifts_.load(codes, place);
    return fit;
  }

  // `u` has the shift taken off.
  unsigned code_of(float u, const GroupFit& fit) const {
    const float scale = fit.scale[o_.sides == 2 && u < 0 ? 1 : 0];
    return o_.table.nearest(scale == 0 ? 0 : u / scale);
  }
  float scaled_level(unsigned code, const GroupFit& fit) const {
    const float level = o_.table.level(code);
    return level * fit.scale[o_.sides == 2 && std::signbit(level) ? 1 : 0];
  }

  // max|u| over the entries of a side.
  static double largest(std::span<const float> u, int side, int sides) {
    float low = 0, high = 0;
    for (const float x : u) {
      low = std::min(low, x);
      high = std::max(high, x);
    }
    if (sides == 1) return std::max(-low, high);
    return side == 0 ? high : -low;
  }

  double absmax_scale(double magnitude, int side) const {
    const double end = o_.sides == 1 ? std::max(o_.table.highest(), -o_.table.lowest())
                                     : (side == 0 ? o_.table.highest() : -o_.table.lowest());
    // The rule of e8m0 rounds this down to a power of two.
    return magnitude / (o_.scale == ScalarForm::kE8M0 ? std::exp2(std::ilogb(end)) : end);
  }

  double rule_scale(std::span<const float> u, int side) const {
    if (o_.rule == ScaleRule::kAbsmax) return absmax_scale(largest(u, side, o_.sides), side);
    double sum = 0, n = 0;
    for (const float x : u) {
      if (o_.sides == 2 && (x < 0) != (side == 1)) continue;
      sum += static_cast<double>(x) * x;
      n += 1;
    }
    return n > 0 ? std::sqrt(sum / n) : 0;
  }

  GroupFit fit_shifted(std::span<const float> w, std::span<const float> weight,
                       const CodesView& codes, int64_t place, double shift,
                       std::vector<float>& u) const {
    GroupFit fit;
    if (has_shift()) {
      fit.stored_shift = shifts_.round(codes, place, shift);
      fit.shift = shifts_.value(codes, place, fit.stored_shift);
    }
    u.assign(w.begin(), w.end());
    for (float& x : u) x -= fit.shift;
    for (int side = 0; side < o_.sides; ++side) {
      const int64_t index = place * o_.sides + side;
      const auto set = [&](GroupFit& to, double scale) {
        to.stored_scale[side] = scales_.round(codes, index, scale);
        to.scale[side] = scales_.value(codes, index, to.stored_scale[side]);
      };
      set(fit, rule_scale(u, side));
      const double end = absmax_scale(largest(u, side, o_.sides), side);
      if (!o_.clip_search || end == 0) continue;
      const double rule = rule_scale(u, side);
      GroupFit best = fit, candidate = fit;
      double best_loss = loss(u, weight, best, side);
      const auto attempt = [&](double scale) {
        set(candidate, scale);
        if (candidate.stored_scale == best.stored_scale) return;
        const double candidate_loss = loss(u, weight, candidate, side);
        if (candidate_loss < best_loss) {
          best_loss = candidate_loss;
          best = candidate;
        }
      };
      if (o_.scale == ScalarForm::kE8M0) attempt(2 * end);
      for (int i = 0; i < kClipSteps && o_.scale != ScalarForm::kE8M0; ++i) {
        attempt(end * (1 - i / 100.0));
        if (o_.rule != ScaleRule::kAbsmax) attempt(rule * (1 - i / 100.0));
      }
      fit = best;
    }
    return fit;
  }

  // Over the entries of a side.
  double loss(std::span<const float> u, std::span<const float> weight, const GroupFit& fit,
              int side) const {
    double sum = 0;
    for (size_t j = 0; j < u.size(); ++j) {
      if (o_.sides == 2 && (u[j] < 0) != (side == 1)) continue;
      const double distance = std::abs(u[j] - scaled_level(code_of(u[j], fit), fit));
      sum += (weight.empty() ? 1.0 : weight[j]) *
             (o_.norm == 2 ? distance * distance : std::pow(distance, o_.norm));
    }
    return sum;
  }

  static std::vector<double> make_n_log_n(int64_t n) {
    std::vector<double> table(static_cast<size_t>(n + 1));
    for (size_t i = 1; i < table.size(); ++i) {
      table[i] = static_cast<double>(i) * std::log2(static_cast<double>(i));
    }
    return table;
  }

  // With c entries at each code the entropy is log2 n - (sum c log2 c) / n.
  GroupFit search_entropy(std::span<const float> w, std::span<const float> weight,
                          const CodesView& codes, int64_t place, const std::vector<double>& n_log_n,
                          std::vector<float>& u, std::vector<float>& scratch) const {
    const double middle = median_of(w, scratch);
    double reach = 0;
    for (const float x : w) reach = std::max(reach, std::abs(x - middle));
    reach *= kEntropyReach;
    GroupFit best;
    double best_sum = 0;
    for (int step = -kEntropySteps; step <= kEntropySteps; ++step) {
      const GroupFit fit =
          fit_shifted(w, weight, codes, place, middle + reach * step / kEntropySteps, u);
      std::array<int, 256> counts{};
      for (const float x : u) ++counts[code_of(x, fit)];
      double sum = 0;
      for (const int count : counts) sum += n_log_n[static_cast<size_t>(count)];
      if (step == -kEntropySteps || sum < best_sum) {
        best_sum = sum;
        best = fit;
      }
    }
    return best;
  }

  ScalarCodecOptions o_;
  CodeSplit split_;
  StoredScalars scales_, shifts_;
};

}  // namespace

std::unique_ptr<Codec> make_scalar_codec(ScalarCodecOptions options) {
  return std::make_unique<ScalarCodec>(std::move(options));
}

}  // namespace quern
