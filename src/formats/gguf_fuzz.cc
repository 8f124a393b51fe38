// SPDX-License-Identifier: Apache-2.0
// Any bytes as a GGUF file: what is accepted lies inside the file, and every tensor that can be
// decoded is decoded, both as stored and as a checkpoint under Hugging Face's names.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "formats/checkpoint_readers.h"
#include "formats/ggml_blocks.h"
#include "formats/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const std::span<const std::byte> file = std::as_bytes(std::span(data, size));
  const auto parsed = parse_gguf(file);
  if (!parsed) {
    QUERN_CHECK(!parsed.error().message.empty());
    return 0;
  }
  std::vector<float> values;
  for (const TensorInfo& tensor : parsed->tensors) {
    QUERN_CHECK(tensor.bytes >= file.data() && tensor.bytes + tensor.n_bytes <= file.data() + size);
    values.resize(static_cast<size_t>(*element_count(tensor.shape)));
    (void)read_ggml_rows(tensor, 0, matrix_rows(tensor), values.data()).has_value();
  }
  for (const auto& [key, value] : parsed->metadata.values()) {
    (void)parsed->metadata.integer(key, INT64_MIN, INT64_MAX).has_value();
    (void)parsed->metadata.number(key).has_value();
    (void)parsed->metadata.string(key).has_value();
    (void)parsed->metadata.integers(key).has_value();
    (void)parsed->metadata.floats(key).has_value();
    (void)parsed->metadata.strings(key).has_value();
  }
  const auto checkpoint = read_gguf_checkpoint(file);
  if (!checkpoint) return 0;
  for (const TensorInfo& tensor : (*checkpoint)->tensors()) {
    values.resize(static_cast<size_t>(*element_count(tensor.shape)));
    (void)(*checkpoint)->read_rows(tensor, 0, matrix_rows(tensor), values.data()).has_value();
  }
  QUERN_CHECK(!(*checkpoint)->config().dump().empty());
  return 0;
}
