// SPDX-License-Identifier: Apache-2.0
#include "formats/gguf.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>

#include "base/check.h"
#include "base/checked.h"
#include "formats/ggml_blocks.h"

namespace quern {
namespace {

constexpr uint64_t kMaxKey = 65535;
constexpr uint64_t kMaxString = uint64_t{64} << 20;
constexpr uint64_t kMaxTensorName = 63;
constexpr uint64_t kMinKeyRecord = 8 + 1 + 4 + 1;  // length, key, type, value
constexpr uint64_t kMinTensorRecord =
    8 + 1 + 4 + 8 + 4 + 8;  // length, name, rank, dim, type, offset
constexpr uint32_t kTypeCount = 13;
constexpr int kTypeBytes[kTypeCount] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr std::string_view kTypeNames[kTypeCount] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

int type_bytes(GgufType type) { return kTypeBytes[static_cast<uint32_t>(type)]; }
std::string_view type_name(GgufType type) { return kTypeNames[static_cast<uint32_t>(type)]; }

bool is_printable_ascii(std::string_view text) {
  for (const char c : text) {
    if (c < 0x20 || c > 0x7e) return false;
  }
  return true;
}

template <class T>
T load(const std::byte* src) {
  T value;
  std::memcpy(&value, src, sizeof(T));
  return value;
}

using Scalar = decltype(GgufValue::value);

// A number of fixed size; bools are checked by the caller.
Scalar load_scalar(GgufType type, const std::byte* src) {
  switch (type) {
    case GgufType::kU8:
      return uint64_t{load<uint8_t>(src)};
    case GgufType::kI8:
      return int64_t{load<int8_t>(src)};
    case GgufType::kU16:
      return uint64_t{load<uint16_t>(src)};
    case GgufType::kI16:
      return int64_t{load<int16_t>(src)};
    case GgufType::kU32:
      return uint64_t{load<uint32_t>(src)};
    case GgufType::kI32:
      return int64_t{load<int32_t>(src)};
    case GgufType::kF32:
      return double{load<float>(src)};
    case GgufType::kBool:
      return load<uint8_t>(src) != 0;
    case GgufType::kU64:
      return load<uint64_t>(src);
    case GgufType::kI64:
      return load<int64_t>(src);
    case GgufType::kF64:
      return load<double>(src);
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  QUERN_CHECK(false);
}

// The integer in [low, high], nothing for another kind of value or one outside.
std::optional<int64_t> integer_of(const Scalar& value, int64_t low, int64_t high) {
  int64_t number;
  if (const auto* natural = std::get_if<uint64_t>(&value)) {
    if (*natural > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    number = static_cast<int64_t>(*natural);
  } else if (const auto* whole = std::get_if<int64_t>(&value)) {
    number = *whole;
  } else {
    return std::nullopt;
  }
  if (number < low || number > high) return std::nullopt;
  return number;
}

std::string shown(const GgufValue& value) {
  const std::string_view type = type_name(value.type);
  if (const auto* natural = std::get_if<uint64_t>(&value.value))
    return fmt::format("{} {}", type, *natural);
  if (const auto* whole = std::get_if<int64_t>(&value.value))
    return fmt::format("{} {}", type, *whole);
  if (const auto* number = std::get_if<double>(&value.value))
    return fmt::format("{} {}", type, *number);
  if (const auto* array = std::get_if<GgufArray>(&value.value)) {
    return fmt::format("array of {} {}", array->count, type_name(array->element));
  }
  return std::string(type);
}

}  // namespace

// Walks the image once; `at_` never passes the end.
class GgufParser {
 public:
  explicit GgufParser(std::span<const std::byte> file) : file_(file) {}
  Result<GgufContents> parse();

 private:
  uint64_t remaining() const { return file_.size() - at_; }

  template <class T>
  Result<T> number(std::string_view what) {
    if (remaining() < sizeof(T)) return error("file ends at byte {} inside {}", file_.size(), what);
    const T value = load<T>(file_.data() + at_);
    at_ += sizeof(T);
    return value;
  }

  Result<std::string_view> string(std::string_view what, uint64_t limit) {
    QUERN_ASSIGN(const uint64_t length, number<uint64_t>(what));
    if (length > remaining()) {
      return error("{} of {} bytes, {} remain in the file", what, length, remaining());
    }
    if (length > limit) return error("{} of {} bytes, limit {}", what, length, limit);
    const std::string_view text(reinterpret_cast<const char*>(file_.data()) + at_, length);
    at_ += length;
    return text;
  }

  Result<GgufType> type() {
    QUERN_ASSIGN(const uint32_t id, number<uint32_t>("a value type"));
    if (id >= kTypeCount) return error("value type {}, expected 0 to {}", id, kTypeCount - 1);
    return static_cast<GgufType>(id);
  }

  Result<GgufValue> value(GgufType type);
  Result<GgufArray> array();
  Status check_bools(const std::byte* src, uint64_t count);
  Status header();
  Status metadata();
  Status read_alignment();
  Result<TensorInfo> tensor_record(uint64_t* offset);
  Status tensors();

  std::span<const std::byte> file_;
  uint64_t at_ = 0;
  uint64_t n_tensors_ = 0, n_keys_ = 0;
  GgufContents contents_;
};

Status GgufParser::header() {
  if (!is_gguf(file_)) return error("no magic 'GGUF'");
  at_ = 4;
  QUERN_ASSIGN(contents_.version, number<uint32_t>("the version"));
  if (contents_.version != 2 && contents_.version != 3) {
    if (contents_.version == 0x02000000 || contents_.version == 0x03000000) {
      return error("big-endian file, expected little-endian");
    }
    return error("version {}, expected 2 or 3", contents_.version);
  }
  QUERN_ASSIGN(n_tensors_, number<uint64_t>("the tensor count"));
  QUERN_ASSIGN(n_keys_, number<uint64_t>("the key count"));
  if (n_tensors_ > remaining() / kMinTensorRecord || n_keys_ > remaining() / kMinKeyRecord) {
    return error("{} tensors and {} keys do not fit the {} bytes that remain", n_tensors_, n_keys_,
                 remaining());
  }
  return {};
}

Status GgufParser::check_bools(const std::byte* src, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const int bit = std::to_integer<int>(src[i]);
    if (bit > 1) return error("bool of value {}, expected 0 or 1", bit);
  }
  return {};
}

Result<GgufArray> GgufParser::array() {
  GgufArray array;
  QUERN_ASSIGN(array.element, type());
  QUERN_ASSIGN(array.count, number<uint64_t>("an array length"));
  if (array.element == GgufType::kArray) return error("array of arrays, which is not supported");
  const uint64_t width = array.element == GgufType::kString ? 8 : type_bytes(array.element);
  if (array.count > remaining() / width) {
    return error("array of {} {} exceeds the {} bytes that remain", array.count,
                 type_name(array.element), remaining());
  }
  if (array.element == GgufType::kString) {
    array.strings.reserve(array.count);
    for (uint64_t i = 0; i < array.count; ++i) {
      QUERN_ASSIGN(const std::string_view text, string("a string of an array", kMaxString));
      array.strings.push_back(text);
    }
    return array;
  }
  array.bytes = file_.subspan(at_, array.count * width);
  at_ += array.bytes.size();
  if (array.element == GgufType::kBool) QUERN_TRY(check_bools(array.bytes.data(), array.count));
  return array;
}

Result<GgufValue> GgufParser::value(GgufType type) {
  GgufValue result{.type = type};
  if (type == GgufType::kString) {
    QUERN_ASSIGN(result.value, string("a string", kMaxString));
  } else if (type == GgufType::kArray) {
    QUERN_ASSIGN(result.value, array());
  } else {
    const uint64_t width = static_cast<uint64_t>(type_bytes(type));
    if (width > remaining()) return error("file ends at byte {} inside a value", file_.size());
    if (type == GgufType::kBool) QUERN_TRY(check_bools(file_.data() + at_, 1));
    result.value = load_scalar(type, file_.data() + at_);
    at_ += width;
  }
  return result;
}

Status GgufParser::metadata() {
  for (uint64_t i = 0; i < n_keys_; ++i) {
    QUERN_ASSIGN(const std::string_view key, string("a key", kMaxKey));
    if (key.empty() || !is_printable_ascii(key)) return error("key {} is not printable ASCII", i);
    QUERN_ASSIGN(const GgufType kind, type());
    Result<GgufValue> read = value(kind);
    if (!read) return error("key '{}': {}", key, read.error().message);
    if (!contents_.metadata.values_.emplace(key, std::move(*read)).second) {
      return error("key '{}' appears twice", key);
    }
  }
  contents_.metadata_end = at_;
  return {};
}

Status GgufParser::read_alignment() {
  const GgufValue* value = contents_.metadata.find("general.alignment");
  if (value == nullptr) return {};
  if (value->type != GgufType::kU32) {
    return error("general.alignment is {}, expected a u32", shown(*value));
  }
  const uint64_t alignment = std::get<uint64_t>(value->value);
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > (1u << 20)) {
    return error("general.alignment {}, expected a power of two in [8, 2^20]", alignment);
  }
  contents_.alignment = alignment;
  return {};
}

// Name, shape and type of the next tensor; its bytes are placed later.
Result<TensorInfo> GgufParser::tensor_record(uint64_t* offset) {
  QUERN_ASSIGN(const std::string_view name, string("a tensor name", kMaxTensorName));
  if (name.empty() || !is_printable_ascii(name))
    return error("a tensor name is not printable ASCII");
  TensorInfo tensor;
  tensor.name = name;
  QUERN_ASSIGN(const uint32_t n_dims, number<uint32_t>("a tensor's rank"));
  if (n_dims < 1 || n_dims > 4) return error("tensor '{}': {} dims, expected 1 to 4", name, n_dims);
  tensor.shape.resize(n_dims);
  for (uint32_t i = 0; i < n_dims; ++i) {
    QUERN_ASSIGN(const uint64_t size, number<uint64_t>("a tensor's shape"));
    if (size < 1 || size > static_cast<uint64_t>(INT64_MAX)) {
      return error("tensor '{}': dim {} is {}, expected 1 to 2^63 - 1", name, i, size);
    }
    tensor.shape[n_dims - 1 - i] = static_cast<int64_t>(size);
  }
  QUERN_ASSIGN(const uint32_t id, number<uint32_t>("a tensor's type"));
  QUERN_ASSIGN(*offset, number<uint64_t>("a tensor's offset"));
  const GgmlType* type = find_ggml_type(id);
  if (type == nullptr) return error("tensor '{}': unknown type id {}", name, id);
  const std::optional<int64_t> count = element_count(tensor.shape);
  if (!count) return error("tensor '{}': shape {} overflows", name, to_string(tensor.shape));
  if (tensor.shape.back() % type->block != 0) {
    return error("tensor '{}': rows of {} weights, {} needs a multiple of {}", name,
                 tensor.shape.back(), type->name, type->block);
  }
  const std::optional<int64_t> size = checked_mul(*count / type->block, type->bytes);
  if (!size) return error("tensor '{}': shape {} overflows", name, to_string(tensor.shape));
  tensor.n_bytes = static_cast<size_t>(*size);
  tensor.dtype = type->dtype.value_or(DType::kU8);
  tensor.block_type = type->dtype ? 0 : id;
  return tensor;
}

Status GgufParser::tensors() {
  std::vector<uint64_t> offsets(n_tensors_);
  std::set<std::string_view> names;
  contents_.tensors.reserve(n_tensors_);
  for (uint64_t i = 0; i < n_tensors_; ++i) {
    QUERN_ASSIGN(TensorInfo tensor, tensor_record(&offsets[i]));
    contents_.tensors.push_back(std::move(tensor));
    if (!names.insert(contents_.tensors.back().name).second) {
      return error("tensor '{}' appears twice", contents_.tensors.back().name);
    }
  }
  if (n_tensors_ == 0) return {};
  const uint64_t start = round_up(at_, contents_.alignment);
  if (start > file_.size()) return error("file ends at byte {} before its data", file_.size());
  const std::span<const std::byte> data = file_.subspan(start);
  uint64_t free_from = 0;
  for (uint64_t i = 0; i < n_tensors_; ++i) {
    TensorInfo& tensor = contents_.tensors[i];
    if (offsets[i] % contents_.alignment != 0) {
      return error("tensor '{}': offset {} is not a multiple of {}", tensor.name, offsets[i],
                   contents_.alignment);
    }
    if (offsets[i] < free_from) {
      return error("tensor '{}': offset {} overlaps the tensor before, which ends at {}",
                   tensor.name, offsets[i], free_from);
    }
    if (offsets[i] > data.size() || tensor.n_bytes > data.size() - offsets[i]) {
      return error("tensor '{}': {} bytes at offset {} exceed the {} bytes of data", tensor.name,
                   tensor.n_bytes, offsets[i], data.size());
    }
    tensor.bytes = data.data() + offsets[i];
    free_from = offsets[i] + tensor.n_bytes;
  }
  return {};
}

Result<GgufContents> GgufParser::parse() {
  QUERN_TRY(header());
  QUERN_TRY(metadata());
  QUERN_TRY(read_alignment());
  QUERN_TRY(tensors());
  return std::move(contents_);
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

Result<int64_t> GgufMetadata::integer(std::string_view key, int64_t low, int64_t high) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return error("key '{}' is missing, expected an integer", key);
  const std::optional<int64_t> number = integer_of(value->value, low, high);
  if (!number) {
    return error("key '{}' is {}, expected an integer in [{}, {}]", key, shown(*value), low, high);
  }
  return *number;
}

Result<int64_t> GgufMetadata::integer_or(std::string_view key, int64_t low, int64_t high,
                                         int64_t fallback) const {
  if (!has(key)) return fallback;
  return integer(key, low, high);
}

Result<double> GgufMetadata::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return error("key '{}' is missing, expected a number", key);
  const double* number = std::get_if<double>(&value->value);
  if (number == nullptr || !std::isfinite(*number)) {
    return error("key '{}' is {}, expected a finite f32 or f64", key, shown(*value));
  }
  return *number;
}

Result<double> GgufMetadata::number_or(std::string_view key, double fallback) const {
  if (!has(key)) return fallback;
  return number(key);
}

Result<bool> GgufMetadata::boolean_or(std::string_view key, bool fallback) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return fallback;
  if (const bool* answer = std::get_if<bool>(&value->value)) return *answer;
  return error("key '{}' is {}, expected a bool", key, shown(*value));
}

Result<std::string_view> GgufMetadata::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return error("key '{}' is missing, expected a string", key);
  if (const auto* text = std::get_if<std::string_view>(&value->value)) return *text;
  return error("key '{}' is {}, expected a string", key, shown(*value));
}

Result<std::string_view> GgufMetadata::string_or(std::string_view key,
                                                 std::string_view fallback) const {
  if (!has(key)) return fallback;
  return string(key);
}

Result<std::vector<int64_t>> GgufMetadata::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  const auto* array = value == nullptr ? nullptr : std::get_if<GgufArray>(&value->value);
  if (array == nullptr) {
    return error("key '{}' is {}, expected an array of integers", key,
                 value == nullptr ? "missing" : shown(*value));
  }
  std::vector<int64_t> numbers;
  const int width = type_bytes(array->element);
  for (uint64_t i = 0; array->strings.empty() && i < array->count; ++i) {
    const auto number = integer_of(load_scalar(array->element, array->bytes.data() + i * width),
                                   INT64_MIN, INT64_MAX);
    if (!number) break;
    numbers.push_back(*number);
  }
  if (numbers.size() != array->count) {
    return error("key '{}' is {}, expected an array of integers", key, shown(*value));
  }
  return numbers;
}

Result<std::vector<float>> GgufMetadata::floats(std::string_view key) const {
  const GgufValue* value = find(key);
  const auto* array = value == nullptr ? nullptr : std::get_if<GgufArray>(&value->value);
  if (array == nullptr || array->element != GgufType::kF32) {
    return error("key '{}' is {}, expected an array of f32", key,
                 value == nullptr ? "missing" : shown(*value));
  }
  std::vector<float> numbers(array->count);
  if (array->count > 0) std::memcpy(numbers.data(), array->bytes.data(), array->bytes.size());
  return numbers;
}

Result<std::span<const std::string_view>> GgufMetadata::strings(std::string_view key) const {
  const GgufValue* value = find(key);
  const auto* array = value == nullptr ? nullptr : std::get_if<GgufArray>(&value->value);
  if (array == nullptr || array->element != GgufType::kString) {
    return error("key '{}' is {}, expected an array of strings", key,
                 value == nullptr ? "missing" : shown(*value));
  }
  return std::span<const std::string_view>(array->strings);
}

bool is_gguf(std::span<const std::byte> file) {
  return file.size() >= 4 && std::memcmp(file.data(), "GGUF", 4) == 0;
}

Result<GgufContents> parse_gguf(std::span<const std::byte> file) {
  try {
    Result<GgufContents> contents = GgufParser(file).parse();
    if (!contents) return error("gguf: {}", contents.error().message);
    return contents;
  } catch (const std::exception& reason) {  // out of memory
    return error("gguf: {}", reason.what());
  }
}

Result<std::unique_ptr<GgufFile>> GgufFile::open(const std::string& path) {
  auto file = std::make_unique<GgufFile>();
  QUERN_ASSIGN(file->file_, MappedFile::open(path));
  Result<GgufContents> contents = parse_gguf(file->file_->bytes());
  if (!contents) return error("{}: {}", path, contents.error().message);
  file->contents_ = std::move(*contents);
  return file;
}

std::string metadata_only_image(const GgufFile& file) {
  constexpr size_t kTensorCount = 8;  // byte where the tensor count stands
  std::string image(reinterpret_cast<const char*>(file.file().bytes().data()),
                    file.contents().metadata_end);
  std::fill_n(image.begin() + kTensorCount, sizeof(uint64_t), '\0');
  return image;
}

}  // namespace quern
