// SPDX-License-Identifier: Apache-2.0
// int: integer activations. A stretch of a row shares a scale s:
//
//   sym=true    s = clip max|x| / q,                level = clamp(round(x / s), -q, q),
//               q = 2^(bits-1) - 1
//   sym=false   s = clip (high - low) / (2^bits - 1), z = round(-clip low / s),
//               level = clamp(round(x / s), -z, 2^bits - 1 - z), with low <= 0 <= high
//
// Both are executed as int8 (kernels/panels.h), which is why sym=false ends at 7 bits: a level is
// the code less its zero point. Rounding is to the nearest even level of x times the reciprocal of
// s. The stretch is the row (per=token, per=tensor) or `group` columns of it. With scale=static the
// largest and least values are those of calibration and what lies beyond is clamped; per=tensor has
// no other: a scale taken over a batch would let a token depend on its company.
#include <algorithm>
#include <array>
#include <cmath>

#include "activations/act_quantizer.h"
#include "base/checked.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kInt, "", 3, 8, "", "of a level"},
    {"per", ParamKind::kChoice, "token", 0, 0, "token|group|tensor", "what shares a scale"},
    {"group", ParamKind::kInt, "128", 16, 1 << 16, "", "columns of per=group, a multiple of 16"},
    {"sym", ParamKind::kChoice, "true", 0, 0, "true|false", "levels about zero, or a zero point"},
    {"clip", ParamKind::kNumber, "1", 0.05, 1, "", "share of the range that levels cover"},
    {"scale", ParamKind::kChoice, "dynamic", 0, 0, "dynamic|static",
     "of each row, or from calibration"},
};

// The grid of one stretch.
struct Grid {
  float scale = 0, to_levels = 0;  // to_levels 0: all levels are zero
  int low = 0, high = 0;
};

class IntAct final : public ActQuantizer {
 public:
  explicit IntAct(const spec::Params& params)
      : spec_(print(params.canonical())),
        bits_(static_cast<int>(params.integer("bits"))),
        group_(params.word("per") == "group" ? params.integer("group") : 0),
        is_symmetric_(params.flag("sym")),
        is_static_(params.word("scale") == "static"),
        clip_(static_cast<float>(params.number("clip"))) {}

  std::string spec() const override { return spec_; }
  ActForm form() const override { return ActForm::kLevels; }

  Status check(int64_t n_in, int64_t panel_group) const override {
    if (group_ == 0 || group_ >= n_in || group_ % panel_group == 0) return {};
    return error(
        "act: the scales of {} are for {} columns, those of the weights for {}: the first must be "
        "a multiple of the second",
        spec_, group_, panel_group);
  }

  int64_t n_ranges(int64_t n_in) const override {
    return is_static_ ? n_stretches(n_in) * per_stretch() : 0;
  }

  std::vector<float> ranges(std::span<const float> low,
                            std::span<const float> high) const override {
    std::vector<float> result;
    const auto n = static_cast<int64_t>(low.size());
    for (int64_t j = 0; is_static_ && j < n; j += width(n)) {
      const auto begin = static_cast<size_t>(j);
      const auto count = static_cast<size_t>(std::min(width(n), n - j));
      const float least = *std::min_element(&low[begin], &low[begin] + count);
      const float most = *std::max_element(&high[begin], &high[begin] + count);
      if (is_symmetric_) {
        result.push_back(std::max(-least, most));
      } else {
        result.push_back(least);
        result.push_back(most);
      }
    }
    return result;
  }

  void levels(const float* x, int64_t n, std::span<const float> ranges,
              const ActLevels& out) const override {
    ActLevels at = out;
    for (int64_t j = 0, stretch = 0; j < n; j += width(n), ++stretch) {
      const int64_t count = std::min(width(n), n - j);
      const Grid grid = grid_of(x + j, count, ranges, stretch);
      kernels().round_levels(x + j, count, at.group, grid.to_levels, grid.low, grid.high, at.levels,
                             at.offsets);
      const int64_t n_groups = ceil_div(count, at.group);
      std::fill_n(at.scales, n_groups, grid.scale);
      at.levels += n_groups * at.group;
      at.scales += n_groups;
      at.offsets += n_groups;
    }
  }

  void values(const float* x, int64_t n, std::span<const float> ranges, float* y) const override {
    constexpr int64_t kPiece = 1024;
    std::array<int8_t, kPiece> levels;
    std::array<int32_t, kPiece / kPanelGroupUnit> offsets;
    for (int64_t j0 = 0, stretch = 0; j0 < n; j0 += width(n), ++stretch) {
      const int64_t end = std::min(j0 + width(n), n);
      const Grid grid = grid_of(x + j0, end - j0, ranges, stretch);
      for (int64_t j = j0; j < end; j += kPiece) {
        const int64_t count = std::min(kPiece, end - j);
        kernels().round_levels(x + j, count, kPanelGroupUnit, grid.to_levels, grid.low, grid.high,
                               levels.data(), offsets.data());
        for (int64_t i = 0; i < count; ++i) {
          y[j + i] = grid.scale * static_cast<float>(levels[static_cast<size_t>(i)]);
        }
      }
    }
  }

 private:
  int64_t width(int64_t n) const { return group_ == 0 ? std::max<int64_t>(1, n) : group_; }
  int64_t n_stretches(int64_t n) const { return ceil_div(n, width(n)); }
  int64_t per_stretch() const { return is_symmetric_ ? 1 : 2; }

  Grid grid_of(const float* x, int64_t n, std::span<const float> ranges, int64_t stretch) const {
    float low = 0, high = 0;
    kernels().range(x, n, &low, &high);
    Grid grid;
    grid.scale = low;
    if (std::isnan(low)) return grid;  // a row that is no number stays none
    if (is_static_) {
      const float* range = &ranges[static_cast<size_t>(stretch * per_stretch())];
      low = is_symmetric_ ? -range[0] : range[0];
      high = range[per_stretch() - 1];
    }
    return is_symmetric_ ? about_zero(clip_ * std::max(-low, high))
                         : with_zero(clip_ * low, clip_ * high);
  }

  static constexpr float kTiny = 0x1p-100f;

  Grid about_zero(float largest) const {
    const int most = (1 << (bits_ - 1)) - 1;
    Grid grid;
    if (!(largest >= kTiny)) return grid;
    grid.scale = largest / static_cast<float>(most);
    grid.to_levels = static_cast<float>(most) / largest;
    grid.low = -most;
    grid.high = most;
    return grid;
  }

  Grid with_zero(float low, float high) const {
    const int most = (1 << bits_) - 1;
    // Halved, so that the span of finite numbers is one.
    const float half = 0.5f * high - 0.5f * low;
    Grid grid;
    if (!(half >= kTiny)) return grid;
    grid.scale = half / static_cast<float>(most) * 2;
    grid.to_levels = static_cast<float>(most) / half / 2;
    const float zero = std::nearbyint(-low * grid.to_levels);
    grid.low = -static_cast<int>(std::clamp(zero, 0.0f, static_cast<float>(most)));
    grid.high = most + grid.low;
    return grid;
  }

  std::string spec_;
  int bits_;
  int64_t group_;  // 0: whole rows
  bool is_symmetric_, is_static_;
  float clip_;
};

constexpr std::string_view kExamples[] = {
    "int(8)",
    "int(4, clip=0.9)",
    "int(3, per=group, group=64)",
    "int(6, sym=false)",
    "int(4, per=group, sym=false, clip=0.95)",
    "int(8, per=tensor, scale=static)",
    "int(7, per=tensor, sym=false, scale=static)",
    "int(5, per=group, group=64, scale=static)",
};

}  // namespace

extern const ActInfo int_act_info;
const ActInfo int_act_info = {
    .name = "int",
    .params = kParams,
    .summary = "integers of 3 to 8 bits per token, group or tensor, multiplied as int8",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<ActQuantizer>> {
      if (params.integer("bits") > 7 && !params.flag("sym")) {
        return usage_error(
            "int: sym=false takes 3 to 7 bits: a level less its zero point is an int8");
      }
      if (params.integer("group") % kPanelGroupUnit != 0) {
        return usage_error("int: group is {}, expected a multiple of {}", params.integer("group"),
                           kPanelGroupUnit);
      }
      const std::string& per = params.word("per");
      const bool is_static = params.word("scale") == "static";
      if (per == "tensor" && !is_static) {
        return usage_error(
            "int: per=tensor needs scale=static: a scale of a batch would let a token depend on "
            "its company");
      }
      if (per == "token" && is_static) {
        return usage_error("int: a static scale is one for all tokens: say per=tensor or group");
      }
      return std::make_unique<IntAct>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
