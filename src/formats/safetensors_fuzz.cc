// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file: what is accepted covers the file exactly and is readable.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const std::span<const std::byte> file = std::as_bytes(std::span(data, size));
  const auto parsed = parse_safetensors(file);
  if (!parsed) {
    QUERN_CHECK(!parsed.error().message.empty());
    return 0;
  }
  size_t total = 0;
  unsigned sum = 0;
  for (const TensorInfo& tensor : parsed->tensors) {
    QUERN_CHECK(tensor.bytes >= file.data() && tensor.n_bytes <= size);
    for (size_t i = 0; i < tensor.n_bytes; ++i) sum += static_cast<unsigned>(tensor.bytes[i]);
    total += tensor.n_bytes;
    QUERN_CHECK(find_tensor(parsed->tensors, tensor.name) == &tensor);
    QUERN_CHECK(matrix_rows(tensor) >= 0 && matrix_cols(tensor) >= 0);
  }
  QUERN_CHECK(total <= size);
  return sum == 0xffffffffu ? 1 : 0;  // keeps the reads alive
}
