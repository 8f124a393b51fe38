// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "spec/spec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern::spec;
  const auto parsed = parse_recipe({reinterpret_cast<const char*>(data), size});
  if (!parsed) return 0;
  const auto again = parse_recipe(print(*parsed));
  if (!again || !(*again == *parsed)) std::abort();
  return 0;
}
