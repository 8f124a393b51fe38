// SPDX-License-Identifier: Apache-2.0
// billm: two bits a weight that BiLLM calls one: signs, and which of two magnitudes; columns that
// matter have magnitudes of their own.
//
// Definition. A group of 128 columns has some salient columns, the same for all rows. In each row
// both classes of columns have an inner and an outer level pair:
//     w_hat = mean[class][outer] +- scale[class][outer],   the means 0 without `mean`,
// the nearest of the class's four levels. Ordinary columns are BiLLM's bell split: the outer
// bit is its membership map. Salient columns are its residual binarisation s1 a1 + s2 a2: the same
// family of levels, with outer magnitude a1 + a2 where both signs agree, and inner a1 - a2. So a
// weight costs two bits whatever its column, and the size does not depend on how many are salient.
//
// Fit. The magnitudes of a class are the exact best two (magnitudes.h). With `mean`, each side of
// the split gets mean m and scale mean|w - m|, and then nearest levels and their means are taken in
// turn while the error falls. refine=false stops before that and binarises salient columns twice in
// BiLLM's greedy way, the residual's mean and mean magnitude after those of the weights: .127 on a
// Gaussian, where the best two magnitudes of 128 give .113.
//
// Salient columns are chosen once, from W: columns in the order of falling sum_i w_ij^2 D_j, the
// number of them that makes the sum over rows of both classes' errors, weighed by D_j, least (of at
// most 512 rows at even steps). D are the pivots of the Hessian, metric=hessian, and w^2 D is
// BiLLM's saliency: its factor U of H^-1 = U^T U is D^-1/2 M^-1, so that 1 / U_jj^2 = D_j.
// metric=magnitude takes D = 1.
//
// Layout. signs (set: minus) and outer: U8 [n_out, ceil(n_in / 8)]; salient: U8 [1, ceil(n_in /
// 8)], a bit per column (bit_planes.h). scales: F16 [n_out, 4 * groups]: inner, outer of ordinary,
// then of salient columns; means: the same, only if `mean`.
// Bits: 2 + 64 / group, with means 2 + 128 / group; 1 / n_out for the columns.
// Reference: BiLLM (arXiv 2402.04291), its program where that differs; docs/codecs/billm.md.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/parallel.h"
#include "codecs/bit_planes.h"
#include "codecs/claims.h"
#include "codecs/magnitudes.h"
#include "codecs/stored_scalars.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"group", ParamKind::kInt, "128", 0, 1 << 20, {}, "columns that share scales; 0: the row"},
    {"salient", ParamKind::kInt, "49", 0, 1 << 20, {}, "most salient columns of a group"},
    {"metric", ParamKind::kChoice, "hessian", 0, 0, "hessian|magnitude", "what columns count by"},
    {"mean", ParamKind::kChoice, "false", 0, 0, "true|false", "levels have means too"},
    {"refine", ParamKind::kChoice, "true", 0, 0, "true|false", "levels of least error"},
};

constexpr std::string_view kMonteCarlo = "a million draws";
constexpr ClaimRow kClaims[] = {
    {"billm(salient=0)", 0.1132, kMonteCarlo},
    {"billm(0, salient=0)", 0.1175, "Lloyd-Max at 2 bits"},
};

constexpr int64_t kMostRows = 512;  // looked at for salient columns
constexpr int kRefinements = 20;
constexpr double kLeastGain = 1e-6;

// The levels of a class of columns: mean[outer] +- scale[outer].
struct ClassFit {
  std::array<double, 2> mean{}, scale{};
  double level(unsigned code) const {  // bit 0: minus, bit 1: outer
    const unsigned outer = code >> 1;
    return mean[outer] + ((code & 1u) != 0 ? -scale[outer] : scale[outer]);
  }
};

struct Moments {
  double weight = 0, sum = 0;
  double mean() const { return weight > 0 ? sum / weight : 0; }
};

// Mean and mean distance from it, of the values that `is_in` takes, less `offset` of each.
template <class IsIn, class Offset>
std::array<double, 2> binarise(std::span<const WeighedValue> values, const IsIn& is_in,
                               const Offset& offset, bool has_mean) {
  Moments value, distance;
  for (const WeighedValue& v : values) {
    if (!is_in(v)) continue;
    value.weight += v.weight;
    value.sum += v.weight * (v.value - offset(v));
  }
  const double mean = has_mean ? value.mean() : 0;
  for (const WeighedValue& v : values) {
    if (!is_in(v)) continue;
    distance.weight += v.weight;
    distance.sum += v.weight * std::abs(v.value - offset(v) - mean);
  }
  return {mean, distance.mean()};
}

// BiLLM's two binarisations one after the other.
ClassFit fit_residual(std::span<const WeighedValue> values, bool has_mean) {
  const auto all = [](const WeighedValue&) { return true; };
  const auto first = binarise(
      values, all, [](const WeighedValue&) { return 0.0; }, has_mean);
  const auto second = binarise(
      values, all,
      [&](const WeighedValue& v) { return first[0] + (v.value < first[0] ? -first[1] : first[1]); },
      has_mean);
  const double mean = first[0] + second[0];
  return {{mean, mean}, {std::abs(first[1] - second[1]), first[1] + second[1]}};
}

ClassFit fit_split(std::span<WeighedValue> values, bool has_mean) {
  const MagnitudeSplit split = split_magnitudes(values, InnerMagnitude::kFree);
  if (!has_mean) return {{0, 0}, {split.inner, split.outer}};
  const double border = (split.inner + split.outer) / 2;
  ClassFit fit;
  for (const bool is_outer : {false, true}) {
    const auto side = binarise(
        values, [&](const WeighedValue& v) { return (std::abs(v.value) > border) == is_outer; },
        [](const WeighedValue&) { return 0.0; }, true);
    fit.mean[is_outer] = side[0];
    fit.scale[is_outer] = side[1];
  }
  return fit;
}

// Nearest levels and their means in turn.
void refine(std::span<const WeighedValue> values, ClassFit& fit) {
  const SortedValues sorted({values.begin(), values.end()});
  double last = -1;
  ClassFit next = fit;
  for (int i = 0; i < kRefinements; ++i) {
    std::array<double, 4> levels;
    for (unsigned c = 0; c < 4; ++c) levels[c] = next.level(c);
    const LevelSums sums = sorted.sums(levels);
    if (last >= 0 && !(sums.loss < last * (1 - kLeastGain))) return;
    last = sums.loss;
    fit = next;
    for (unsigned c = 0; c < 4; ++c) {
      if (sums.weight[c] > 0) levels[c] = sums.mean(c);
    }
    for (unsigned outer = 0; outer < 2; ++outer) {
      next.mean[outer] = (levels[2 * outer] + levels[2 * outer + 1]) / 2;
      next.scale[outer] = (levels[2 * outer] - levels[2 * outer + 1]) / 2;
    }
  }
}

class BillmCodec final : public Codec {
 public:
  explicit BillmCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        most_salient_(params.integer("salient")),
        is_weighted_(params.word("metric") == "hessian"),
        has_mean_(params.flag("mean")),
        is_refined_(params.flag("refine")),
        bits_({"signs", "outer", "salient"}, true, params.integer("group")),
        scales_("scale", ScalarForm::kF16, ScalarUse::kScale, 3),
        means_("mean", ScalarForm::kF16, ScalarUse::kShift, 4) {}

  std::string spec() const override { return spec_; }
  Claim claim() const override { return find_claim(kClaims, spec_, 2); }
  int64_t block_cols() const override { return 1; }
  int64_t group_cols(int64_t n_in) const override { return bits_.group_cols(n_in); }
  bool weighs_columns() const override { return is_weighted_; }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    std::vector<PlaneSpec> more;
    scales_.add_planes(n_out, 4 * bits_.n_groups(n_in), more);
    if (has_mean_) means_.add_planes(n_out, 4 * bits_.n_groups(n_in), more);
    return bits_.planes(spec_, n_out, n_in, more);
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    const int64_t n_in = source.w.cols, group = bits_.group_cols(n_in);
    std::vector<uint8_t> is_salient(static_cast<size_t>(n_in));
    parallel_for(bits_.n_groups(n_in), 1, [&](int64_t begin, int64_t end) {
      for (int64_t col = begin * group; col < std::min(end * group, n_in); col += group) {
        const int64_t width = std::min(group, n_in - col);
        const std::span<const float> weight =
            source.weight.empty() || !is_weighted_
                ? std::span<const float>()
                : source.weight.subspan(static_cast<size_t>(col), static_cast<size_t>(width));
        for (const int64_t j : salient_columns(source.w.col_range(col, width), weight)) {
          is_salient[static_cast<size_t>(col + j)] = 1;
        }
      }
    });
    for (int64_t j = 0; j < n_in; ++j) {
      bits_.put_column_bit(codes, j, is_salient[static_cast<size_t>(j)] != 0);
    }
  }

  void fit(MatrixView<const float> w, std::span<const float> weight, int64_t row, int64_t col,
           const MutableCodes& codes) const override {
    if (!is_weighted_) weight = {};
    for (int64_t i = 0; i < w.rows; ++i) {
      const auto values = weighed_values({w.row(i), static_cast<size_t>(w.cols)}, weight);
      std::array<std::vector<WeighedValue>, 2> classes;
      for (int64_t j = 0; j < w.cols; ++j) {
        classes[bits_.column_bit(codes, col + j) ? 1 : 0].push_back(values[static_cast<size_t>(j)]);
      }
      int64_t place = place_of(codes, row + i, col / bits_.group_cols(codes.n_in));
      for (const bool is_salient : {false, true}) {
        const ClassFit fit = fit_class(classes[is_salient], is_salient);
        for (size_t outer = 0; outer < 2; ++outer, ++place) {
          scales_.store(codes, place, scales_.round(codes, place, fit.scale[outer]));
          if (has_mean_) means_.store(codes, place, means_.round(codes, place, fit.mean[outer]));
        }
      }
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
  int64_t place_of(const CodesView& codes, int64_t row, int64_t g) const {
    return 4 * (row * bits_.n_groups(codes.n_in) + g);
  }

  ClassFit fit_class(std::span<WeighedValue> values, bool is_salient) const {
    if (!is_refined_ && is_salient) return fit_residual(values, has_mean_);
    ClassFit fit = fit_split(values, has_mean_);
    if (is_refined_ && has_mean_) refine(values, fit);
    return fit;
  }

  // The columns of one group, [rows, width], that deserve levels of their own.
  std::vector<int64_t> salient_columns(MatrixView<const float> w,
                                       std::span<const float> weight) const {
    const int64_t width = w.cols, most = std::min(most_salient_, width);
    std::vector<double> saliency(static_cast<size_t>(width));
    std::vector<std::vector<WeighedValue>> rows;
    for (int64_t i = 0; i < w.rows; i += (w.rows + kMostRows - 1) / kMostRows) {
      rows.push_back(weighed_values({w.row(i), static_cast<size_t>(width)}, weight));
      for (size_t j = 0; j < saliency.size(); ++j) {
        saliency[j] += rows.back()[j].weight * rows.back()[j].value * rows.back()[j].value;
      }
    }
    std::vector<int64_t> columns(static_cast<size_t>(width));
    std::iota(columns.begin(), columns.end(), 0);
    std::stable_sort(columns.begin(), columns.end(), [&](int64_t a, int64_t b) {
      return saliency[static_cast<size_t>(a)] > saliency[static_cast<size_t>(b)];
    });
    // losses[n]: with the first n columns salient.
    std::vector<double> losses(static_cast<size_t>(most + 1));
    for (const auto& row : rows) add_losses(row, columns, losses);
    const auto best = std::min_element(losses.begin(), losses.end()) - losses.begin();
    columns.resize(static_cast<size_t>(best));
    return columns;
  }

  static void add_losses(const std::vector<WeighedValue>& row, const std::vector<int64_t>& columns,
                         std::vector<double>& losses) {
    struct Ranked {
      WeighedValue entry;
      size_t rank;  // place of its column among the salient
    };
    std::vector<Ranked> sorted;
    for (size_t r = 0; r < columns.size(); ++r) {
      sorted.push_back({row[static_cast<size_t>(columns[r])], r});
    }
    std::stable_sort(sorted.begin(), sorted.end(), [](const Ranked& a, const Ranked& b) {
      return std::abs(a.entry.value) > std::abs(b.entry.value);
    });
    std::array<std::vector<WeighedValue>, 2> classes;
    for (size_t n = 0; n < losses.size(); ++n) {
      for (auto& values : classes) values.clear();
      for (const Ranked& r : sorted) classes[r.rank < n ? 1 : 0].push_back(r.entry);
      for (const auto& values : classes) {
        losses[n] += split_sorted_magnitudes(values, InnerMagnitude::kFree).loss;
      }
    }
  }

  BitPlanes::NumbersOf levels_of() const {
    return [this](const CodesView& codes, int64_t row, int64_t first, int64_t n, float* levels) {
      thread_local std::vector<float> scales, means;
      scales.resize(static_cast<size_t>(4 * n));
      means.assign(scales.size(), 0);
      scales_.load(codes, place_of(codes, row, first), 4 * n, scales.data());
      if (has_mean_) means_.load(codes, place_of(codes, row, first), 4 * n, means.data());
      for (size_t k = 0; k < scales.size(); ++k) {
        levels[2 * k] = means[k] + scales[k];
        levels[2 * k + 1] = means[k] - scales[k];
      }
    };
  }

  std::string spec_;
  int64_t most_salient_;
  bool is_weighted_, has_mean_, is_refined_;
  BitPlanes bits_;
  StoredScalars scales_, means_;
};

constexpr std::string_view kExamples[] = {
    "billm",
    "billm(salient=0)",
    "billm(0, salient=0)",
    "billm(mean=true)",
    "billm(mean=true, refine=false)",
    "billm(64, refine=false)",
    "billm(7, salient=3, metric=magnitude)",
};

}  // namespace

extern const CodecInfo billm_codec_info;
const CodecInfo billm_codec_info = {
    .id = 42,
    .name = "billm",
    .params = kParams,
    .summary = "signs, two magnitudes, and salient columns with their own (BiLLM)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      return std::make_unique<BillmCodec>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
