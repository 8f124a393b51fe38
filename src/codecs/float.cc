// SPDX-License-Identifier: Apache-2.0
// float: floats of 3 to 8 bits with a scale per group: FP8, FP6-LLM, MXFP4/6/8, NVFP4, AFPQ.
//
// Definition. w_hat = scale * element(code), see scalar_codec.h for the choice of the scale.
// Elements are small_float.h's: eXmY has X exponent and Y mantissa bits. A code is the nearest
// element, of two the even one; magnitudes past the highest become the highest.
//     published                 here
//     MXFP8, MXFP6, MXFP4       float(e4m3 | e5m2 | e2m3 | e3m2 | e2m1, group=32, scale=e8m0)
//     NVFP4                     float(e2m1, group=16, scale=e4m3)
//     FP6-LLM                   float(e3m2, group=0)
//     FP8 by rows               float(e4m3, group=0)
//     AFPQ's FP4, FP3           float(e2m1, sides=2), float(e2m0, sides=2)
//
// With f16 scales elements are divided by the power of two under the highest, so that scales are
// about as large as the weights and never lost among the subnormal halves.
//
// Layout. Codes of 5 and 6 bits are split: the low four bits in `codes`, the rest in `high`
// (TC-FPx). Scales: F16, F8_E8M0, or F8_E4M3 with one F32 for the matrix, chosen such that the
// largest scale is 448.
// Bits: those of the element + sides * (16 or 8) / group.
// References: microscaling arXiv 2310.10537 and OCP MX 1.0, FP6-LLM arXiv 2401.14112, FP8 arXiv
// 2209.05433, AFPQ arXiv 2311.01792.
#include <cmath>

#include "codecs/claims.h"
#include "codecs/scalar_codec.h"
#include "codecs/small_float.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"element", ParamKind::kChoice, "", 0, 0, "e2m0|e2m1|e3m0|e2m2|e3m1|e2m3|e3m2|e4m3|e5m2",
     "exponent and mantissa bits of a code"},
    {"group", ParamKind::kInt, "128", 0, 1 << 20, {}, "columns that share a scale; 0: the row"},
    {"scale", ParamKind::kChoice, "f16", 0, 0, "f16|e8m0|e4m3", "form of the scales"},
    {"sides", ParamKind::kInt, "1", 1, 2, {}, "2: a scale for each sign"},
    {"clip", ParamKind::kChoice, "none", 0, 0, "none|search", "choose the scale of least loss"},
    {"norm", ParamKind::kNumber, "2", 0.5, 8, {}, "exponent of the loss of the search"},
};

constexpr std::string_view kMonteCarlo = "a million draws";
constexpr ClaimRow kClaims[] = {
    {"float(e2m1, group=32, scale=e8m0)", 0.01323, kMonteCarlo},
    {"float(e2m1, group=32, scale=e8m0, clip=search)", 0.01245, kMonteCarlo},
    {"float(e2m3, group=32, scale=e8m0)", 0.00081, kMonteCarlo},
    {"float(e3m2, group=32, scale=e8m0)", 0.00291, kMonteCarlo},
    {"float(e5m2, group=32, scale=e8m0)", 0.00291, kMonteCarlo},
    {"float(e2m1, group=16, scale=e4m3)", 0.00904, kMonteCarlo},
    {"float(e3m2, group=0)", 0.00278, kMonteCarlo},
    {"float(e4m3, group=0)", 0.00070, kMonteCarlo},
    {"float(e2m1)", 0.01186, kMonteCarlo},
    {"float(e2m1, sides=2)", 0.01116, kMonteCarlo},
};

constexpr std::string_view kExamples[] = {
    "float(e2m1)",
    "float(e2m1, group=32, scale=e8m0)",
    "float(e2m1, group=32, scale=e8m0, clip=search)",
    "float(e2m3, group=32, scale=e8m0)",
    "float(e3m2, group=32, scale=e8m0)",
    "float(e4m3, group=32, scale=e8m0)",
    "float(e5m2, group=32, scale=e8m0)",
    "float(e2m1, group=16, scale=e4m3)",
    "float(e2m1, group=16, scale=e4m3, clip=search)",
    "float(e3m2, group=0)",
    "float(e4m3, group=0)",
    "float(e5m2, group=7)",
    "float(e2m1, sides=2)",
    "float(e2m0, group=64, sides=2, clip=search)",
    "float(e3m0, group=48)",
    "float(e2m2, group=64)",
    "float(e3m1, group=16, clip=search, norm=2.4)",
};

Result<std::unique_ptr<Codec>> make_float(const spec::Params& params) {
  const std::string& element = params.word("element");
  const int exponent_bits = element[1] - '0', mantissa_bits = element[3] - '0';
  std::vector<float> levels = small_float_levels(exponent_bits, mantissa_bits);
  const int bits = 1 + exponent_bits + mantissa_bits;
  const std::string& form = params.word("scale");
  if (form == "f16") {
    const float unit =
        std::exp2(-static_cast<float>(std::ilogb(ScalarTable(bits, levels).highest())));
    for (float& level : levels) level *= unit;
  }
  const std::string text = print(params.canonical());
  return make_scalar_codec({
      .spec = text,
      .claim = find_claim(kClaims, text, bits),
      .table = ScalarTable(bits, levels),
      .group = params.integer("group"),
      .scale = form == "f16"    ? ScalarForm::kF16
               : form == "e8m0" ? ScalarForm::kE8M0
                                : ScalarForm::kE4M3,
      .sides = static_cast<int>(params.integer("sides")),
      .clip_search = params.word("clip") == "search",
      .norm = params.number("norm"),
  });
}

}  // namespace

extern const CodecInfo float_codec_info;
const CodecInfo float_codec_info = {
    .id = 20,
    .name = "float",
    .params = kParams,
    .summary = "small floats with a scale per group, microscaling formats",
    .make = make_float,
    .examples = kExamples,
};

}  // namespace quern
