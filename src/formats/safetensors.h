// SPDX-License-Identifier: Apache-2.0
// safetensors: an 8-byte little-endian header length N, N bytes of JSON (tensor name -> dtype,
// shape, [begin, end) in the data buffer), then the data buffer without holes. Read strictly:
// every rule of the format is checked before a byte of data is touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/status.h"
#include "formats/checkpoint.h"

namespace quern {

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // sorted by name; `bytes` point into the given file
  std::map<std::string, std::string> metadata;
};

// Bytes of a tensor; nothing if the count overflows or bits do not fill whole bytes.
std::optional<uint64_t> stored_bytes(DType dtype, const Shape& shape);

// Checks and indexes a whole file image, which must outlive the result.
Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file);

class SafetensorsFile {
 public:
  static Result<std::unique_ptr<SafetensorsFile>> open(const std::string& path);
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const TensorInfo* find(std::string_view name) const;
  const MappedFile& file() const { return *file_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  SafetensorsHeader header_;
};

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

// Bytes before the data of a file of these tensors without metadata of its own.
Result<size_t> safetensors_header_bytes(std::vector<TensorSpec> tensors);

// Streams one file: all tensors are declared first, then written in the order of `order()`
// (bits of the dtype descending, then name), whole or in pieces. Nothing appears at `path`
// before finish(). The header is padded so that the data starts on a multiple of 64 bytes; metadata
// gains {"format": "pt"} if it lacks a format.
class SafetensorsWriter {
 public:
  static Result<SafetensorsWriter> create(const std::string& path, std::vector<TensorSpec> tensors,
                                          const std::map<std::string, std::string>& metadata);
  const std::vector<TensorSpec>& order() const { return order_; }
  // Appends bytes to the tensor that is due; fails if it is not `name` or gets too many bytes.
  Status append(std::string_view name, const void* data, size_t n_bytes);
  Status finish();

 private:
  explicit SafetensorsWriter(AtomicFile file) : file_(std::move(file)) {}
  bool is_complete() const;  // the tensor that is due has all its bytes

  AtomicFile file_;
  std::vector<TensorSpec> order_;
  size_t due_ = 0;
  uint64_t written_ = 0;  // bytes of the tensor that is due
};

}  // namespace quern
