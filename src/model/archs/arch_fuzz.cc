// SPDX-License-Identifier: Apache-2.0
// A hostile config.json must be refused or described, without a crash or a large allocation.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "formats/json.h"
#include "model/weights.h"

namespace {

// Walks the places of the first weights, as opening a checkpoint would.
void locate_some(const quern::Arch& arch, const quern::ModelDesc& model) {
  int n_left = 1000;
  const auto done = quern::for_each_weight(model, [&](const quern::WeightId& id) -> quern::Status {
    if (n_left-- == 0) return quern::error("enough");
    for (quern::Part part : {quern::Part::kWeight, quern::Part::kBias}) {
      if (quern::has_weight(model, id, part)) arch.locate(model, id, part);
    }
    return {};
  });
  (void)done;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = quern::parse_json(text, "config.json");
  if (!config) return 0;
  const auto found = quern::find_arch(*config);
  (void)found;
  for (const quern::Arch& arch : quern::archs()) {
    const auto model = arch.describe(*config);
    if (model) locate_some(arch, *model);
  }
  return 0;
}
