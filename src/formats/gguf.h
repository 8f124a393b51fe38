// SPDX-License-Identifier: Apache-2.0
// GGUF versions 2 and 3, little-endian: typed metadata, then tensor records, then aligned data.
// Every count, length, type and offset is checked against the bytes that remain before it is used;
// nothing is allocated beyond a small multiple of the file. Strings and arrays stay in the image.
//
//   "GGUF" | u32 version | u64 n_tensors | u64 n_keys
//   n_keys    x { string key | u32 type | value }
//   n_tensors x { string name | u32 n_dims | u64 dims[n_dims], fastest first | u32 type | u64
//   offset } zeros to the alignment | tensor data, offsets from here
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/file.h"
#include "base/status.h"
#include "formats/checkpoint.h"

namespace quern {

enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

// Elements in the image: fixed-size ones in `bytes` (unaligned), strings in `strings`.
struct GgufArray {
  GgufType element = GgufType::kU8;
  uint64_t count = 0;
  std::span<const std::byte> bytes;
  std::vector<std::string_view> strings;
};

struct GgufValue {
  GgufType type = GgufType::kU8;  // as stored; the variant widens integers and floats
  std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray> value;
};

// Getters fail with the key when it is absent or holds another kind of value; integers of any
// width and sign serve as integers, F32 and F64 as numbers, and neither as the other. The forms
// with a fallback return it when the key is absent.
class GgufMetadata {
 public:
  bool has(std::string_view key) const { return find(key) != nullptr; }
  const GgufValue* find(std::string_view key) const;  // null if absent
  const std::map<std::string_view, GgufValue>& values() const { return values_; }

  Result<int64_t> integer(std::string_view key, int64_t low, int64_t high) const;
  Result<int64_t> integer_or(std::string_view key, int64_t low, int64_t high,
                             int64_t fallback) const;
  Result<double> number(std::string_view key) const;  // finite
  Result<double> number_or(std::string_view key, double fallback) const;
  Result<bool> boolean_or(std::string_view key, bool fallback) const;
  Result<std::string_view> string(std::string_view key) const;
  Result<std::string_view> string_or(std::string_view key, std::string_view fallback) const;
  Result<std::vector<int64_t>> integers(std::string_view key) const;
  Result<std::vector<float>> floats(std::string_view key) const;
  Result<std::span<const std::string_view>> strings(std::string_view key) const;

 private:
  friend class GgufParser;
  std::map<std::string_view, GgufValue> values_;
};

struct GgufContents {
  uint32_t version = 0;
  uint64_t alignment = 32;
  GgufMetadata metadata;
  uint64_t metadata_end = 0;        // byte after the last key
  std::vector<TensorInfo> tensors;  // in file order, GGUF names; plain types have block_type 0
};

// Checks and indexes a whole file image, which must outlive the result.
Result<GgufContents> parse_gguf(std::span<const std::byte> file);

class GgufFile {
 public:
  static Result<std::unique_ptr<GgufFile>> open(const std::string& path);
  const GgufContents& contents() const { return contents_; }
  const GgufMetadata& metadata() const { return contents_.metadata; }
  const std::vector<TensorInfo>& tensors() const { return contents_.tensors; }
  const MappedFile& file() const { return *file_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  GgufContents contents_;
};

// An image with the file's metadata and no tensors: all that a tokenizer needs.
std::string metadata_only_image(const GgufFile& file);

bool is_gguf(std::span<const std::byte> file);  // by its magic

}  // namespace quern
