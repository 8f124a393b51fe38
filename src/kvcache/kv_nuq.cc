// SPDX-License-Identifier: Apache-2.0
// nuq: levels fitted to a layer's keys and to its values (KVQuant, arXiv 2401.18079), with the
// numbers that lie apart kept beside the codes. Keys have a centre and a half-range per channel,
// fixed by calibration, and are meant to be coded before RoPE; values have them per position and
// head. With u = (x - z) / s:
//   levels   weighted k-means of all u within [-1, 1], whole 127ths; the weight is that of the
//            number (KvFitRows), times s^2
//   x^       (level gain + shift) s + z; gain 1 and shift 0, unless qnorm gives what was coded the
//            mean and the deviation of what it was (Q-Norm)
// Of keys the largest |u| beyond 1 stay apart, as many of a page as fit; of values those without
// which the ranges of positions are narrowest.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/float_types.h"
#include "kernels/kernels.h"
#include "kernels/level_codes.h"
#include "kvcache/kv_codec.h"
#include "kvcache/kv_correction.h"
#include "kvcache/kv_levels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kInt, "", 1, 4, "", "of a code"},
    {"outliers", ParamKind::kNumber, "1", 0, kMostKvOutliers, "", "percent kept beside the codes"},
    {"qnorm", ParamKind::kChoice, "false", 0, 0, "true|false", "codes keep mean and deviation"},
};

constexpr float kWhole = 127;  // levels are so many parts of one

struct Settings {
  int bits = 0;
  double percent = 0;
  bool has_qnorm = false;
  int n_levels() const { return 1 << bits; }
};

// Levels of a layer, and what they become.
struct Levels {
  std::vector<float> at;       // ascending, whole 127ths
  std::vector<float> borders;  // between two
  float gain = 1, shift = 0;

  int nearest(float u) const {
    int code = 0;
    for (const float border : borders) code += u > border ? 1 : 0;
    return code;
  }
  // Of levels that are set.
  void place_borders() {
    borders.clear();
    for (size_t i = 0; i + 1 < at.size(); ++i) borders.push_back((at[i] + at[i + 1]) / 2);
  }
};

// Least and largest of a row without those that stay apart, and what is no number.
struct RowRange {
  float low = 0, high = 0;
  static RowRange of(const float* x, int64_t n, const uint8_t* is_apart) {
    RowRange range;
    bool is_empty = true;
    for (int64_t i = 0; i < n; ++i) {
      if (is_apart[i] != 0 || !std::isfinite(x[i])) continue;
      range.low = is_empty ? x[i] : std::min(range.low, x[i]);
      range.high = is_empty ? x[i] : std::max(range.high, x[i]);
      is_empty = false;
    }
    return range;
  }
  float centre() const { return low / 2 + high / 2; }
  float half() const { return high / 2 - low / 2; }
};

std::vector<uint8_t> marked(std::span<const uint16_t> places, int64_t n) {
  std::vector<uint8_t> marks(static_cast<size_t>(n));
  for (const uint16_t place : places) marks[place] = 1;
  return marks;
}

// What fits levels: points, and the moments that qnorm keeps.
class LevelFit {
 public:
  void add(double u, double weight) {
    cells_.add(u, weight);
    points_.push_back(static_cast<float>(u));
  }
  Levels levels(const Settings& settings) const {
    Levels levels;
    for (const double level : cells_.best_levels(settings.n_levels())) {
      levels.at.push_back(std::nearbyint(static_cast<float>(level) * kWhole) / kWhole);
    }
    levels.place_borders();
    if (settings.has_qnorm) keep_moments(levels);
    return levels;
  }

 private:
  void keep_moments(Levels& levels) const {
    double sums[2] = {}, squares[2] = {};
    for (const float u : points_) {
      const double both[2] = {u, levels.at[static_cast<size_t>(levels.nearest(u))]};
      for (int i = 0; i < 2; ++i) {
        sums[i] += both[i];
        squares[i] += both[i] * both[i];
      }
    }
    const auto n = static_cast<double>(points_.size());
    double mean[2], deviation[2];
    for (int i = 0; i < 2; ++i) {
      mean[i] = sums[i] / n;
      deviation[i] = std::sqrt(std::max(0.0, squares[i] / n - mean[i] * mean[i]));
    }
    if (!(deviation[1] > 0)) return;
    levels.gain = static_cast<float>(deviation[0] / deviation[1]);
    levels.shift = static_cast<float>(mean[0] - mean[1] * deviation[0] / deviation[1]);
  }
  WeightedCells cells_;
  std::vector<float> points_;
};

// Tables of a layer: its levels, gain, shift; for keys then the centres and half-ranges of all
// channels, [n_heads * d_head] each.
class KvNuq : public KvUnfitted {
 public:
  KvNuq(std::string spec, Settings settings) : spec_(std::move(spec)), settings_(settings) {}

  std::string spec() const override { return spec_; }
  KvTables tables() const override { return KvTables::kOfModel; }
  bool is_bare() const override { return false; }

  Status check(KvSide /*side*/, int64_t d_head) const override {
    return check_coded_head(spec_, d_head);
  }
  int64_t page_bytes(KvSide side, int64_t d_head) const override {
    return level_code_bytes(settings_.bits, kKeyBlock * d_head) + scale_bytes(side) +
           correction(side, d_head).n_bytes();
  }

  Result<std::vector<float>> fit(const KvFitRows& rows) const override;
  Result<std::shared_ptr<const KvCodec>> with_tables(const KvFitRows& layer, int64_t head,
                                                     std::span<const float> tables) const override;

 protected:
  static int64_t scale_bytes(KvSide side) {
    return side == KvSide::kKeys ? 0 : 4 * kKeyBlock;  // a centre and a half-range per position
  }
  KvCorrectionShape correction(KvSide side, int64_t d_head) const {
    const bool is_keys = side == KvSide::kKeys;
    return {is_keys ? d_head : kKeyBlock, is_keys ? kKeyBlock : d_head, 0,
            outlier_count(settings_.percent, kKeyBlock * d_head)};
  }
  void put_apart(KvSide side, int64_t d_head, const float* x, std::span<const uint16_t> places,
                 std::byte* page) const;

  const std::string spec_;
  const Settings settings_;

 private:
  Result<std::vector<float>> fit_keys(const KvFitRows& rows) const;
  std::vector<float> fit_values(const KvFitRows& rows) const;
};

// Of a page that is coded but for what lies apart: that.
void KvNuq::put_apart(KvSide side, int64_t d_head, const float* x, std::span<const uint16_t> places,
                      std::byte* page) const {
  const KvCorrectionShape shape = correction(side, d_head);
  std::byte* to = page + page_bytes(side, d_head) - shape.n_bytes();
  put_correction(shape, {}, to);
  KvScratchMemory scratch;
  std::vector<float> memory(static_cast<size_t>(kKeyBlock * d_head));
  const float* coded = floats_of(read(side, d_head, page, nullptr, scratch.view(d_head)),
                                 kKeyBlock * d_head, memory.data());
  std::vector<float> deltas;
  for (const uint16_t place : places) deltas.push_back(x[place] - coded[place]);
  put_correction(shape, {{}, {}, deltas, places}, to);
}

// Keys of one head. A page: codes [d_head, kKeyBlock] as in level_codes.h, row by row; what lies
// apart.
class KvNuqKeys final : public KvNuq {
 public:
  KvNuqKeys(const KvNuq& codec, Levels levels, std::vector<float> centres,
            std::vector<float> halves)
      : KvNuq(codec),
        levels_(std::move(levels)),
        centres_(std::move(centres)),
        halves_(std::move(halves)) {
    tables_.resize(16 * centres_.size());
    for (size_t c = 0; c < centres_.size(); ++c) {
      for (size_t i = 0; i < levels_.at.size(); ++i) {
        const float level = levels_.at[i] * levels_.gain + levels_.shift;
        tables_[16 * c + i] = level * halves_[c] + centres_[c];
      }
    }
  }

  void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const override {
    const int64_t n = kKeyBlock * d_head;
    std::fill_n(page, level_code_bytes(settings_.bits, n), std::byte{0});
    std::vector<float> u(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      const auto c = static_cast<size_t>(i / kKeyBlock);
      const float unit = halves_[c] > 0 ? (x[i] - centres_[c]) / halves_[c] : 0;
      u[static_cast<size_t>(i)] = std::isfinite(unit) ? unit : 0;
      const float within = std::clamp(u[static_cast<size_t>(i)], -1.0f, 1.0f);
      put_level_code(settings_.bits, n, i, levels_.nearest(within), page);
    }
    put_apart(side, d_head, x, farthest(u, correction(side, d_head).n_entries), page);
  }

  KvOperand read(KvSide side, int64_t d_head, const std::byte* page, const std::byte* /*next*/,
                 const KvScratch& scratch) const override {
    const int64_t n = kKeyBlock * d_head;
    unpack_level_codes({settings_.bits, n, page}, scratch.levels);
    look_up_rows(scratch.levels, tables_.data(), d_head, kKeyBlock, scratch.floats);
    const KvCorrectionShape shape = correction(side, d_head);
    if (shape.n_bytes() > 0) {
      read_correction(shape, page + level_code_bytes(settings_.bits, n), scratch);
      correct_floats(*scratch.correction, scratch.floats, kernels());
    }
    return {.floats = scratch.floats};
  }

 private:
  // At most n places where |u| is beyond 1, the farthest, in ascending order.
  static std::vector<uint16_t> farthest(const std::vector<float>& u, int64_t n) {
    std::vector<uint16_t> places;
    for (size_t i = 0; i < u.size(); ++i) {
      if (std::fabs(u[i]) > 1) places.push_back(static_cast<uint16_t>(i));
    }
    const auto is_farther = [&](uint16_t a, uint16_t b) {
      return std::fabs(u[a]) > std::fabs(u[b]);
    };
    std::stable_sort(places.begin(), places.end(), is_farther);
    places.resize(std::min(places.size(), static_cast<size_t>(n)));
    std::sort(places.begin(), places.end());
    return places;
  }

  Levels levels_;
  std::vector<float> centres_, halves_;  // [d_head]
  std::vector<float> tables_;            // [d_head, 16]: what codes stand for
};

// Values. A page: codes in the order of level_place, the half-ranges and the centres of positions,
// F16 [kKeyBlock] each; what lies apart.
class KvNuqValues final : public KvNuq {
 public:
  KvNuqValues(const KvNuq& codec, Levels levels) : KvNuq(codec), levels_(std::move(levels)) {
    for (size_t i = 0; i < levels_.at.size(); ++i) {
      bytes_[i] = static_cast<uint8_t>(static_cast<int>(std::nearbyint(levels_.at[i] * kWhole)));
    }
  }

  void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const override {
    const KvCorrectionShape shape = correction(side, d_head);
    const int64_t n = kKeyBlock * d_head, code_bytes = level_code_bytes(settings_.bits, n);
    std::fill_n(page, code_bytes, std::byte{0});
    const std::vector<uint16_t> apart = choose_outliers(x, kKeyBlock, d_head, shape.n_entries);
    const std::vector<uint8_t> is_apart = marked(apart, n);
    std::byte* halves = page + code_bytes;
    std::byte* centres = halves + 2 * kKeyBlock;
    for (int64_t p = 0; p < kKeyBlock; ++p) {
      const RowRange range = RowRange::of(x + p * d_head, d_head, is_apart.data() + p * d_head);
      put_half(halves, p, range.half());
      put_half(centres, p, range.centre());
      const float half = half_at(halves, p), centre = half_at(centres, p);
      for (int64_t c = 0; c < d_head; ++c) {
        const float unit = half > 0 ? (x[p * d_head + c] - centre) / half : 0;
        const bool is_out = is_apart[static_cast<size_t>(p * d_head + c)] != 0;
        const float within = is_out || !std::isfinite(unit) ? 0 : std::clamp(unit, -1.0f, 1.0f);
        put_level_code(settings_.bits, n, level_place(d_head, p, c), levels_.nearest(within), page);
      }
    }
    put_apart(side, d_head, x, apart, page);
  }

  KvOperand read(KvSide side, int64_t d_head, const std::byte* page, const std::byte* next,
                 const KvScratch& scratch) const override {
    const int64_t n = kKeyBlock * d_head;
    LevelBlock& block = *scratch.block;
    block = {.levels = {settings_.bits, n, page, bytes_.data()},
             .scales = scratch.scales,
             .centres = scratch.centres};
    block.rows = kKeyBlock;
    block.cols = block.group = d_head;
    block.share = LevelBlock::Share::kAcross;
    block.sign = LevelBlock::Sign::kUnsigned;
    block.next = next;
    block.n_next = page_bytes(side, d_head);
    const std::byte* halves = page + level_code_bytes(settings_.bits, n);
    kernels().f16_to_float(halves, kKeyBlock, scratch.scales);
    kernels().f16_to_float(halves + 2 * kKeyBlock, kKeyBlock, scratch.centres);
    if (levels_.shift != 0)
      kernels().axpy(levels_.shift, scratch.scales, kKeyBlock, scratch.centres);
    kernels().scale(levels_.gain / kWhole, kKeyBlock, scratch.scales);
    const KvCorrectionShape shape = correction(side, d_head);
    if (shape.n_bytes() == 0) return {.levels = &block};
    read_correction(shape, halves + 4 * kKeyBlock, scratch);
    return {.levels = &block, .added = scratch.correction};
  }

 private:
  Levels levels_;
  std::array<uint8_t, 16> bytes_{};  // levels as int8_t
};

// The number below which a share of x lies, between two numbers in proportion.
double quantile(std::vector<float>& x, double share) {
  const double at = share * static_cast<double>(x.size() - 1);
  const auto below = static_cast<size_t>(at);
  std::nth_element(x.begin(), x.begin() + static_cast<int64_t>(below), x.end());
  const double low = x[below];
  if (below + 1 == x.size()) return low;
  const double high = *std::min_element(x.begin() + static_cast<int64_t>(below) + 1, x.end());
  return low + (at - static_cast<double>(below)) * (high - low);
}

std::vector<float> tables_of(const Levels& levels) {
  std::vector<float> tables = levels.at;
  tables.push_back(levels.gain);
  tables.push_back(levels.shift);
  return tables;
}

Result<std::vector<float>> KvNuq::fit(const KvFitRows& rows) const {
  for (int64_t i = 0; i < rows.x.rows; ++i) {
    for (int64_t j = 0; j < rows.x.cols; ++j) {
      if (!std::isfinite(rows.x.row(i)[j])) return error("kv: {} of numbers that are none", spec_);
      const double weight = rows.weight(i, j);
      if (!(weight >= 0) || std::isinf(weight))
        return error("kv: {} of weights that cannot be", spec_);
    }
  }
  if (rows.x.rows < kKeyBlock) {
    return error("kv: {} of {} positions, expected {} at least", spec_, rows.x.rows, kKeyBlock);
  }
  if (rows.side == KvSide::kKeys) return fit_keys(rows);
  return fit_values(rows);
}

Result<std::vector<float>> KvNuq::fit_keys(const KvFitRows& rows) const {
  const double beyond = settings_.percent / 200;
  std::vector<float> centres, halves, channel(static_cast<size_t>(rows.x.rows));
  LevelFit points;
  for (int64_t c = 0; c < rows.x.cols; ++c) {
    for (int64_t i = 0; i < rows.x.rows; ++i) channel[static_cast<size_t>(i)] = rows.x.row(i)[c];
    const double low = quantile(channel, beyond), high = quantile(channel, 1 - beyond);
    const double centre = (low + high) / 2, half = (high - low) / 2;
    centres.push_back(static_cast<float>(centre));
    halves.push_back(static_cast<float>(half));
    if (!(half > 0)) continue;
    for (int64_t i = 0; i < rows.x.rows; ++i) {
      const double u = (rows.x.row(i)[c] - centre) / half;
      if (std::fabs(u) <= 1) points.add(u, rows.weight(i, c) * half * half);
    }
  }
  std::vector<float> tables = tables_of(points.levels(settings_));
  tables.insert(tables.end(), centres.begin(), centres.end());
  tables.insert(tables.end(), halves.begin(), halves.end());
  return tables;
}

// In pages, as they will be coded.
std::vector<float> KvNuq::fit_values(const KvFitRows& rows) const {
  const int64_t d = rows.d_head, n_apart = correction(KvSide::kValues, d).n_entries;
  std::vector<float> page(static_cast<size_t>(kKeyBlock * d));
  LevelFit points;
  for (int64_t first = 0; first + kKeyBlock <= rows.x.rows; first += kKeyBlock) {
    for (int64_t head = 0; head < rows.n_heads; ++head) {
      for (int64_t p = 0; p < kKeyBlock; ++p) {
        std::copy_n(rows.x.row(first + p) + head * d, d, page.begin() + p * d);
      }
      const std::vector<uint8_t> is_apart =
          marked(choose_outliers(page.data(), kKeyBlock, d, n_apart), kKeyBlock * d);
      for (int64_t p = 0; p < kKeyBlock; ++p) {
        const float* x = page.data() + p * d;
        const RowRange range = RowRange::of(x, d, is_apart.data() + p * d);
        const double half = range.half();
        if (!(half > 0)) continue;
        for (int64_t c = 0; c < d; ++c) {
          const double u = (x[c] - double{range.centre()}) / half;
          const double weight = rows.weight(first + p, head * d + c);
          if (std::fabs(u) <= 1) points.add(u, weight * half * half);
        }
      }
    }
  }
  return tables_of(points.levels(settings_));
}

Result<std::shared_ptr<const KvCodec>> KvNuq::with_tables(const KvFitRows& layer, int64_t head,
                                                          std::span<const float> tables) const {
  const auto n_levels = static_cast<size_t>(settings_.n_levels());
  const bool is_keys = layer.side == KvSide::kKeys;
  const auto width = static_cast<size_t>(layer.n_heads * layer.d_head);
  const size_t expected = n_levels + 2 + (is_keys ? 2 * width : 0);
  if (tables.size() != expected) {
    return error("kv: {}: {} numbers in its tables, expected {}", spec_, tables.size(), expected);
  }
  Levels levels;
  levels.at.assign(tables.begin(), tables.begin() + static_cast<int64_t>(n_levels));
  levels.place_borders();
  levels.gain = tables[n_levels];
  levels.shift = tables[n_levels + 1];
  const auto is_fine = [](float x) { return std::fabs(x) <= 65504; };  // false for NaN
  const bool are_levels =
      std::is_sorted(levels.at.begin(), levels.at.end()) &&
      std::all_of(levels.at.begin(), levels.at.end(), [](float x) { return std::fabs(x) <= 1; });
  if (!std::all_of(tables.begin(), tables.end(), is_fine) || !are_levels || levels.gain < 0) {
    return error("kv: {}: tables with numbers that cannot be", spec_);
  }
  if (!is_keys) return std::make_shared<const KvNuqValues>(*this, std::move(levels));
  const std::span<const float> centres = tables.subspan(n_levels + 2, width);
  const std::span<const float> halves = tables.last(width);
  if (std::any_of(halves.begin(), halves.end(), [](float x) { return x < 0; })) {
    return error("kv: {}: a range below zero in its tables", spec_);
  }
  const auto of_head = [&](std::span<const float> all) {
    const auto part =
        all.subspan(static_cast<size_t>(head * layer.d_head), static_cast<size_t>(layer.d_head));
    return std::vector<float>(part.begin(), part.end());
  };
  return std::make_shared<const KvNuqKeys>(*this, std::move(levels), of_head(centres),
                                           of_head(halves));
}

constexpr std::string_view kExamples[] = {"nuq(4)", "nuq(3, outliers=0)", "nuq(2, qnorm=true)",
                                          "nuq(1, outliers=2)"};

}  // namespace

extern const KvCodecInfo kv_nuq_codec_info;
const KvCodecInfo kv_nuq_codec_info = {
    .name = "nuq",
    .params = kParams,
    .summary = "levels fitted to a layer, and outliers (KVQuant)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvCodec>> {
      const Settings settings{static_cast<int>(params.integer("bits")), params.number("outliers"),
                              params.flag("qnorm")};
      return std::make_unique<KvNuq>(print(params.canonical()), settings);
    },
    .examples = kExamples,
};

}  // namespace quern
