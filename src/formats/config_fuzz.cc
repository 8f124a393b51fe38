// SPDX-License-Identifier: Apache-2.0
// Any bytes as config.json: parsing answers, and what it accepts survives printing and parsing.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "formats/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const auto parsed = parse_json({reinterpret_cast<const char*>(data), size}, "config.json");
  if (!parsed) {
    QUERN_CHECK(!parsed.error().message.empty());
    return 0;
  }
  const auto again = parse_json(parsed->dump(), "again");
  QUERN_CHECK(again && *again == *parsed);
  for (const char* key : {"hidden_size", "rope_theta", "model_type"}) {
    (void)json_int_or(*parsed, key, 1, 1 << 24, 1).has_value();
    (void)json_number_or(*parsed, key, 1).has_value();
    (void)json_string_or(*parsed, key, "").has_value();
    (void)json_bool_or(*parsed, key, false).has_value();
  }
  return 0;
}
