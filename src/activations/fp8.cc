// SPDX-License-Identifier: Apache-2.0
// fp8: activations as floats of 8 bits, x_hat = s e(x / s), e the nearest element (ties to even
// mantissas), s = max|x| / the largest element: 448 of e4m3, 57344 of e5m2 (OCP 8-bit floating
// point specification 1.0). Nothing here multiplies in 8-bit floats: the rounded values meet the
// decoded weights in float, which is the sum that such hardware rounds.
//
// per=token takes the largest value of each row; per=tensor that of calibration, and what lies
// beyond is clamped.
#include <algorithm>
#include <bit>
#include <cmath>

#include "activations/act_quantizer.h"
#include "base/check.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"element", ParamKind::kChoice, "e4m3", 0, 0, "e4m3|e5m2", "exponent and mantissa bits"},
    {"per", ParamKind::kChoice, "token", 0, 0, "token|tensor", "what shares a scale"},
    {"scale", ParamKind::kChoice, "dynamic", 0, 0, "dynamic|static",
     "of each row, or from calibration"},
};

struct Element {
  int mantissa_bits;
  float most, least_normal, step;  // step: of subnormals
};
constexpr Element kE4m3 = {3, 448, 0x1p-6f, 0x1p-9f};
constexpr Element kE5m2 = {2, 57344, 0x1p-14f, 0x1p-16f};

// The nearest element; v is finite.
float nearest(float v, const Element& element) {
  const float size = std::abs(v);
  if (size >= element.most) return std::copysign(element.most, v);
  if (size < element.least_normal) return std::nearbyint(v / element.step) * element.step;
  const int dropped = 23 - element.mantissa_bits;
  uint32_t bits = std::bit_cast<uint32_t>(v);
  bits += (1u << (dropped - 1)) - 1 + ((bits >> dropped) & 1);
  return std::bit_cast<float>(bits & ~((1u << dropped) - 1));
}

class Fp8Act final : public ActQuantizer {
 public:
  explicit Fp8Act(const spec::Params& params)
      : spec_(print(params.canonical())),
        element_(params.word("element") == "e4m3" ? kE4m3 : kE5m2),
        is_static_(params.word("scale") == "static") {}

  std::string spec() const override { return spec_; }
  ActForm form() const override { return ActForm::kValues; }
  Status check(int64_t, int64_t) const override { return {}; }
  int64_t n_ranges(int64_t) const override { return is_static_ ? 1 : 0; }

  std::vector<float> ranges(std::span<const float> low,
                            std::span<const float> high) const override {
    if (!is_static_) return {};
    return {std::max(-*std::min_element(low.begin(), low.end()),
                     *std::max_element(high.begin(), high.end()))};
  }

  void levels(const float*, int64_t, std::span<const float>, const ActLevels&) const override {
    QUERN_CHECK(!"floats have no integer levels");
  }

  void values(const float* x, int64_t n, std::span<const float> ranges, float* y) const override {
    constexpr float kTiny = 0x1p-100f;
    float low = 0, high = 0;
    kernels().range(x, n, &low, &high);
    const float largest = is_static_ ? ranges[0] : std::max(-low, high);
    if (std::isnan(low) || !(largest >= kTiny)) {
      std::fill_n(y, n, std::isnan(low) ? low : 0.0f);
      return;
    }
    const float scale = largest / element_.most, inverse = element_.most / largest;
    for (int64_t i = 0; i < n; ++i) {
      y[i] = scale * nearest(std::clamp(x[i] * inverse, -element_.most, element_.most), element_);
    }
  }

 private:
  std::string spec_;
  Element element_;
  bool is_static_;
};

constexpr std::string_view kExamples[] = {"fp8", "fp8(e5m2)", "fp8(per=tensor, scale=static)"};

}  // namespace

extern const ActInfo fp8_act_info;
const ActInfo fp8_act_info = {
    .name = "fp8",
    .params = kParams,
    .summary = "floats of 8 bits, e4m3 or e5m2, multiplied in float",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<ActQuantizer>> {
      const bool is_static = params.word("scale") == "static";
      if ((params.word("per") == "tensor") != is_static) {
        return usage_error(
            "fp8: per=tensor and scale=static go together: a scale of a batch would let a token "
            "depend on its company");
      }
      return std::make_unique<Fp8Act>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
