// SPDX-License-Identifier: Apache-2.0
#include "codecs/scalar_codec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "base/checked.h"
#include "codecs/interleaved.h"

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

// The levels of a table as level / unit + 128. The unit is one of which all levels are multiples,
// if that leaves at least 64 of them on a side; levels that are no numbers become zero.
struct ByteLevels {
  std::array<uint8_t, 256> levels{};
  float unit = 0;
};

ByteLevels byte_levels(const ScalarTable& table) {
  constexpr int kMost = 127, kFewest = 64;
  const float largest = std::max(table.highest(), -table.lowest());
  const auto unit_of = [&](int n) { return largest / static_cast<float>(n); };
  const auto is_exact = [&](int n) {
    for (unsigned code = 0; code < 256; ++code) {
      const float level = table.level(code);
      if (std::isfinite(level) && level != unit_of(n) * std::nearbyint(level / unit_of(n))) {
        return false;
      }
    }
    return true;
  };
  int n = kMost;
  while (n >= kFewest && !is_exact(n)) --n;
  ByteLevels bytes;
  bytes.unit = unit_of(n < kFewest ? kMost : n);
  for (unsigned code = 0; code < 256; ++code) {
    const float level = std::isfinite(table.level(code)) ? table.level(code) : 0;
    bytes.levels[code] =
        static_cast<uint8_t>(kPanelZero + static_cast<int>(std::nearbyint(level / bytes.unit)));
  }
  return bytes;
}

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
    if (!checked_mul(n_out, groups(n_in) * o_.sides)) {
      return error("{}: a matrix of {} x {} has too many groups", o_.spec, n_out, n_in);
    }
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
          const double reach = o_.shift == ShiftRule::kEntropy ? kEntropyReach * largest(u) : 0;
          shifts.push_back(static_cast<float>(std::abs(middle) + reach));
        }
        for (int side = 0; side < o_.sides; ++side) {
          scales.push_back(static_cast<float>(rule_scale(take_side(u, {}, side))));
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
    std::vector<float> u;
    std::vector<uint8_t> chosen(static_cast<size_t>(std::min(group, w.cols)));
    for (int64_t i = 0; i < w.rows; ++i) {
      auto* low = stream(codes, 0, row + i, split_.low);
      auto* high = split_.high > 0 ? stream(codes, 1, row + i, split_.high) : nullptr;
      for (int64_t j = 0; j < w.cols;) {
        const int64_t g = (col + j) / group;
        const int64_t n = std::min(w.cols, (g + 1) * group - col) - j;
        const GroupFit fit = load(codes, (row + i) * groups(codes.n_in) + g);
        u.assign(w.row(i) + j, w.row(i) + j + n);
        for (float& x : u) x -= fit.shift;
        choose_codes(u, fit, chosen.data());
        for (int64_t k = 0; k < n; ++k, ++j) {
          const unsigned code = chosen[static_cast<size_t>(k)];
          put_code(low, col + j, split_.low, code & ((1u << split_.low) - 1u));
          if (high != nullptr) put_code(high, col + j, split_.high, code >> split_.low);
          w_hat(i, j) = scaled_level(code, fit);
          if (has_shift()) w_hat(i, j) += fit.shift;
        }
      }
    }
  }

  bool lists_levels() const override { return true; }
  void levels(const CodesView& codes, int64_t row, int64_t col,
              std::vector<float>& values) const override {
    const GroupFit fit = load(codes, row * groups(codes.n_in) + col / group_cols(codes.n_in));
    values.clear();
    for (unsigned code = 0; code < 1u << o_.table.bits(); ++code) {
      values.push_back(scaled_level(code, fit));
      if (has_shift()) values.back() += fit.shift;
    }
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const int64_t n_groups = groups(codes.n_in);
    std::vector<float> scales(static_cast<size_t>(n_groups * o_.sides));
    std::vector<float> shifts(has_shift() ? static_cast<size_t>(n_groups) : 0);
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      scales_.load(codes, i * n_groups * o_.sides, n_groups * o_.sides, scales.data());
      if (has_shift()) shifts_.load(codes, i * n_groups, n_groups, shifts.data());
      table_decode_row({stream(codes, 0, i, split_.low),
                        split_.high > 0 ? stream(codes, 1, i, split_.high) : nullptr,
                        o_.table.levels(), scales.data(), has_shift() ? shifts.data() : nullptr,
                        codes.n_in, group_cols(codes.n_in), o_.table.bits(), o_.sides},
                       dst);
    }
  }

  // Levels are rounded to bytes of the largest.
  std::shared_ptr<const RuntimeForm> runtime_form(const CodesView& codes,
                                                  Reading reading) const override {
    if (reading != Reading::kPanels || o_.sides > 1 || has_shift()) return nullptr;
    const ByteLevels levels = byte_levels(o_.table);
    InterleavedSource source;
    source.spec = o_.spec;
    source.n_out = codes.n_out;
    source.rows = {stream(codes, 0, 0, split_.low),
                   split_.high > 0 ? stream(codes, 1, 0, split_.high) : nullptr, split_.low,
                   split_.high, codes.n_in};
    source.bits = o_.table.bits();
    source.group = group_cols(codes.n_in);
    for (unsigned code = 0; code < 256; ++code) source.values[code] = o_.table.level(code);
    source.levels = levels.levels;
    source.unit = levels.unit;
    const int64_t n = groups(codes.n_in);
    source.read_scales = [&](int64_t row, float* scales) {
      scales_.load(codes, row * n, n, scales);
    };
    return interleave(source);
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
  void choose_codes(std::span<const float> u, const GroupFit& fit, uint8_t* chosen) const {
    if (o_.sides == 1) {
      const auto n = static_cast<int64_t>(u.size());
      return table_nearest(o_.table, {u.data(), nullptr, n, fit.scale[0]}, chosen);
    }
    for (size_t j = 0; j < u.size(); ++j) {
      table_nearest_ref(o_.table, {&u[j], nullptr, 1, fit.scale[u[j] < 0 ? 1 : 0]}, chosen + j);
    }
  }
  float scaled_level(unsigned code, const GroupFit& fit) const {
    const float level = o_.table.level(code);
    return level * fit.scale[o_.sides == 2 && std::signbit(level) ? 1 : 0];
  }

  // The entries of a side; of one side all.
  struct Side {
    std::span<const float> u, weight;  // weight empty: all alike
    int index = 0;
    std::vector<float> own_u, own_weight;
  };

  Side take_side(std::span<const float> u, std::span<const float> weight, int index) const {
    Side side{u, weight, index, {}, {}};
    if (o_.sides == 1) return side;
    for (size_t j = 0; j < u.size(); ++j) {
      if ((u[j] < 0) != (index == 1)) continue;
      side.own_u.push_back(u[j]);
      if (!weight.empty()) side.own_weight.push_back(weight[j]);
    }
    side.u = side.own_u;
    side.weight = side.own_weight;
    return side;
  }

  static double largest(std::span<const float> u) {
    float largest = 0;
    for (const float x : u) largest = std::max(largest, std::abs(x));
    return largest;
  }

  double absmax_scale(const Side& side) const {
    const float up = o_.table.highest(), down = -o_.table.lowest();
    const double end = o_.sides == 1 ? std::max(up, down) : side.index == 0 ? up : down;
    // The rule of e8m0 rounds this down to a power of two.
    return largest(side.u) / (o_.scale == ScalarForm::kE8M0 ? std::exp2(std::ilogb(end)) : end);
  }

  double rule_scale(const Side& side) const {
    if (o_.rule == ScaleRule::kAbsmax) return absmax_scale(side);
    double sum = 0;
    for (const float x : side.u) sum += static_cast<double>(x) * x;
    return side.u.empty() ? 0 : std::sqrt(sum / static_cast<double>(side.u.size()));
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
    for (int index = 0; index < o_.sides; ++index) {
      const Side side = take_side(u, weight, index);
      fit.stored_scale[index] = choose_scale(side, codes, place * o_.sides + index);
      fit.scale[index] = scales_.value(codes, place * o_.sides + index, fit.stored_scale[index]);
    }
    return fit;
  }

  uint16_t choose_scale(const Side& side, const CodesView& codes, int64_t place) const {
    const double rule = rule_scale(side);
    uint16_t best = scales_.round(codes, place, rule);
    if (!o_.clip_search || rule == 0) return best;
    const double end = absmax_scale(side);
    double best_loss = loss(side, scales_.value(codes, place, best));
    const auto attempt = [&](double scale) {
      const uint16_t candidate = scales_.round(codes, place, scale);
      if (candidate == best) return;
      const double candidate_loss = loss(side, scales_.value(codes, place, candidate));
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
    return best;
  }

  double loss(const Side& side, float scale) const {
    const auto n = static_cast<int64_t>(side.u.size());
    const float* weight = side.weight.empty() ? nullptr : side.weight.data();
    if (o_.norm == 2) return table_error(o_.table, {side.u.data(), weight, n, scale});
    double sum = 0;
    for (size_t j = 0; j < side.u.size(); ++j) {
      const float level = o_.table.level(o_.table.nearest(scale == 0 ? 0 : side.u[j] / scale));
      const double distance = std::abs(side.u[j] - level * scale);
      sum += (weight == nullptr ? 1 : weight[j]) * std::pow(distance, o_.norm);
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
    std::vector<uint8_t> chosen(w.size());
    std::vector<size_t> counts(size_t{1} << o_.table.bits());
    GroupFit best;
    double best_sum = 0;
    for (int step = -kEntropySteps; step <= kEntropySteps; ++step) {
      const GroupFit fit =
          fit_shifted(w, weight, codes, place, middle + reach * step / kEntropySteps, u);
      choose_codes(u, fit, chosen.data());
      std::fill(counts.begin(), counts.end(), 0);
      for (const uint8_t code : chosen) ++counts[code];
      double sum = 0;
      for (const size_t count : counts) sum += n_log_n[count];
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
