// SPDX-License-Identifier: Apache-2.0
// Any bytes as a plan and as a file of curves: refused, or what is printed again as the same.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "allocate/curves.h"
#include "allocate/plan.h"
#include "base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const auto json = parse_json({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!json) return 0;
  const auto plan = plan_from_json(*json, "fuzz");
  if (plan) {
    const auto again = plan_from_json(plan->to_json(), "again");
    QUERN_CHECK(again.has_value() && again->to_json() == plan->to_json());
  } else {
    QUERN_CHECK(!plan.error().message.empty());
  }
  const auto curves = curves_from_json(*json, "fuzz");
  if (!curves) {
    QUERN_CHECK(!curves.error().message.empty());
    return 0;
  }
  for (const auto& [name, unit] : curves->units) {
    QUERN_CHECK(std::isfinite(unit.probe_kl) && unit.probe_loss >= 0);
    for (const auto& [text, point] : unit.points) {
      QUERN_CHECK(std::isfinite(point.loss) && point.loss >= 0 && point.seconds >= 0);
    }
  }
  return 0;
}
