// SPDX-License-Identifier: Apache-2.0
// table: levels at places fitted to a distribution, with a scale per group: NF4, Lloyd-Max, CVXQ's
// compander, AFPQ, ICQ.
//
// Definition. w_hat = scale * level(code) + shift, see scalar_codec.h for scale and shift. Levels
// rise with the code and come from level_tables.h:
//     nf       quantiles of a normal distribution, with a zero, from -1 to 1 (QLoRA); the scale is
//              the largest magnitude
//     lloyd    least mean squared error on a unit Gaussian; the scale is the root mean square
//     laplace  CVXQ's compander, quantiles of the cube root of a Laplace density; root mean square
// Layout. As float's; scales F16 or nested (QLoRA's double quantisation, stored_scalars.h); shifts
// in the same form as the scales, only if there are any.
// Bits: bits + (sides + shift) * 16 / group; nested: 8 and a little for 16.
// References: QLoRA arXiv 2305.14314, Max 1960, CVXQ arXiv 2409.02026, AFPQ arXiv 2311.01792,
// IR-QLoRA arXiv 2402.05445.
#include "codecs/claims.h"
#include "codecs/level_tables.h"
#include "codecs/scalar_codec.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"levels", ParamKind::kChoice, "", 0, 0, "nf|lloyd|laplace", "where the levels lie"},
    {"bits", ParamKind::kInt, "", 1, 8, {}, "bits of a code"},
    {"group", ParamKind::kInt, "64", 0, 1 << 20, {}, "columns that share a scale; 0: the row"},
    {"scale", ParamKind::kChoice, "f16", 0, 0, "f16|nested", "form of scales and shifts"},
    {"sides", ParamKind::kInt, "1", 1, 2, {}, "2: a scale for each sign"},
    {"shift", ParamKind::kChoice, "none", 0, 0, "none|median|entropy", "constant of each group"},
    {"clip", ParamKind::kChoice, "none", 0, 0, "none|search", "choose the scale of least loss"},
    {"norm", ParamKind::kNumber, "2", 0.5, 8, {}, "exponent of the loss of the search"},
};

constexpr std::string_view kMonteCarlo = "a million draws";
constexpr std::string_view kMax = "Max 1960, table I";
constexpr ClaimRow kClaims[] = {
    {"table(nf, 4)", 0.00845, kMonteCarlo},
    {"table(nf, 4, group=32)", 0.0076, kMonteCarlo},
    {"table(nf, 4, group=128)", 0.00914, kMonteCarlo},
    {"table(nf, 4, scale=nested)", 0.00845, kMonteCarlo},
    {"table(nf, 3, sides=2)", 0.0335, kMonteCarlo},
    {"table(nf, 4, shift=entropy)", 0.00853, kMonteCarlo},
    {"table(lloyd, 1, group=0)", 0.3634, kMax},
    {"table(lloyd, 2, group=0)", 0.1175, kMax},
    {"table(lloyd, 3, group=0)", 0.03454, kMax},
    {"table(lloyd, 4, group=0)", 0.009497, kMax},
    {"table(laplace, 2, group=0, clip=search)", 0.12747, "integrals over its cells"},
    {"table(laplace, 3, group=0, clip=search)", 0.04661, "integrals over its cells"},
    {"table(laplace, 4, group=0, clip=search)", 0.01287, "integrals over its cells"},
};

constexpr std::string_view kExamples[] = {
    "table(nf, 4)",
    "table(nf, 4, group=32)",
    "table(nf, 4, group=128)",
    "table(nf, 4, scale=nested)",
    "table(nf, 3, sides=2)",
    "table(nf, 4, sides=2, shift=median, scale=nested)",
    "table(nf, 4, shift=entropy)",
    "table(nf, 2, group=7, shift=entropy, scale=nested)",
    "table(lloyd, 1, group=0)",
    "table(lloyd, 2, group=0)",
    "table(lloyd, 3, group=0)",
    "table(lloyd, 4, group=0)",
    "table(lloyd, 5, group=128, sides=2)",
    "table(lloyd, 6, group=64, clip=search)",
    "table(lloyd, 7, group=48, shift=median)",
    "table(lloyd, 8)",
    "table(laplace, 2, group=0, clip=search)",
    "table(laplace, 3, group=0, clip=search)",
    "table(laplace, 4, group=0, clip=search)",
};

Result<std::unique_ptr<Codec>> make_table(const spec::Params& params) {
  const std::string& kind = params.word("levels");
  const int bits = static_cast<int>(params.integer("bits"));
  const auto levels = (kind == "nf"      ? kNfLevels
                       : kind == "lloyd" ? kLloydLevels
                                         : kLaplaceLevels)[bits - 1];
  if (levels.empty()) return usage_error("table: {} has no levels of {} bit", kind, bits);
  const bool is_nested = params.word("scale") == "nested";
  if (is_nested && kind != "nf") {
    return usage_error(
        "table: scale=nested has no zero, which {} needs for a group of zeros; only nf has a level "
        "there",
        kind);
  }
  const std::string& shift = params.word("shift");
  const std::string text = print(params.canonical());
  const ScalarForm form = is_nested ? ScalarForm::kNested : ScalarForm::kF16;
  return make_scalar_codec({
      .spec = text,
      .claim = find_claim(kClaims, text, bits),
      .table = ScalarTable(bits, levels),
      .group = params.integer("group"),
      .scale = form,
      .rule = kind == "nf" ? ScaleRule::kAbsmax : ScaleRule::kRms,
      .shift_form = form,
      .shift = shift == "none"     ? ShiftRule::kNone
               : shift == "median" ? ShiftRule::kMedian
                                   : ShiftRule::kEntropy,
      .sides = static_cast<int>(params.integer("sides")),
      .clip_search = params.word("clip") == "search",
      .norm = params.number("norm"),
  });
}

}  // namespace

extern const CodecInfo table_codec_info;
const CodecInfo table_codec_info = {
    .id = 21,
    .name = "table",
    .params = kParams,
    .summary = "levels fitted to a distribution: NF4, Lloyd-Max, companders",
    .make = make_table,
    .examples = kExamples,
};

}  // namespace quern
