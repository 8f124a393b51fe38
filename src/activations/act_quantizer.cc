// SPDX-License-Identifier: Apache-2.0
#include "activations/act_quantizer.h"

#include <cmath>

#include "spec/registry.h"

namespace quern {

#define QUERN_ACT(name) extern const ActInfo name##_act_info;
#include "activations/list.inc"
#undef QUERN_ACT

std::span<const ActInfo> act_quantizers() {
  static const ActInfo rows[] = {
#define QUERN_ACT(name) name##_act_info,
#include "activations/list.inc"
#undef QUERN_ACT
  };
  return rows;
}

Result<std::unique_ptr<ActQuantizer>> make_act(const spec::Call& call) {
  return spec::make(act_quantizers(), call, "act quantizer");
}

Result<std::unique_ptr<ActQuantizer>> make_act(std::string_view text) {
  QUERN_ASSIGN(const spec::Call call, spec::parse_call(text));
  return make_act(call);
}

Status check_ranges(const ActQuantizer& act, int64_t n_in, std::span<const float> ranges) {
  const int64_t expected = act.n_ranges(n_in);
  if (static_cast<int64_t>(ranges.size()) != expected) {
    return error("{} has {} ranges for {} columns, expected {}", act.spec(), ranges.size(), n_in,
                 expected);
  }
  for (const float range : ranges) {
    if (!std::isfinite(range)) return error("{}: a range is {}", act.spec(), range);
  }
  return {};
}

}  // namespace quern
