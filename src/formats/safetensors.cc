// SPDX-License-Identifier: Apache-2.0
#include "formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "base/checked.h"
#include "formats/json.h"

namespace quern {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr std::string_view kMetadataKey = "__metadata__";

// A list of non-negative integers below 2^63.
Result<std::vector<int64_t>> read_counts(const Json& entry, std::string_view key) {
  const auto found = entry.find(key);
  if (found == entry.end() || !found->is_array()) return error("'{}' is not a list", key);
  std::vector<int64_t> counts;
  counts.reserve(found->size());
  for (const Json& item : *found) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      return error("'{}' holds {}, expected integers of at least 0", key,
                   item.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 64));
    }
    counts.push_back(static_cast<int64_t>(item.get<uint64_t>()));
  }
  return counts;
}

// One entry of the header; `data` is the data buffer.
Result<TensorInfo> read_entry(const Json& entry, std::span<const std::byte> data) {
  if (!entry.is_object()) return error("the entry is not an object");
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return error("unknown key '{}', expected dtype, shape, data_offsets", key);
    }
  }
  TensorInfo tensor;
  QUERN_ASSIGN(const std::string dtype, json_string(entry, "dtype"));
  const std::optional<DType> known = dtype_from_name(dtype);
  if (!known) return error("unknown dtype '{}'", dtype);
  tensor.dtype = *known;
  QUERN_ASSIGN(tensor.shape, read_counts(entry, "shape"));
  QUERN_ASSIGN(const std::vector<int64_t> offsets, read_counts(entry, "data_offsets"));
  if (offsets.size() != 2) return error("data_offsets has {} numbers, expected 2", offsets.size());
  const uint64_t begin = static_cast<uint64_t>(offsets[0]);
  const uint64_t end = static_cast<uint64_t>(offsets[1]);
  if (begin > end || end > data.size()) {
    return error("offsets [{}, {}) do not fit the {} bytes of data", begin, end, data.size());
  }
  const std::optional<uint64_t> size = stored_bytes(tensor.dtype, tensor.shape);
  if (!size) {
    return error("shape {} of {} overflows or does not fill whole bytes", to_string(tensor.shape),
                 dtype);
  }
  if (*size != end - begin) {
    return error("offsets [{}, {}) hold {} bytes, shape {} of {} needs {}", begin, end, end - begin,
                 to_string(tensor.shape), dtype, *size);
  }
  tensor.bytes = data.data() + begin;
  tensor.n_bytes = *size;
  return tensor;
}

// Tensors fill the data buffer end to end.
Status check_cover(const std::vector<TensorInfo>& tensors, std::span<const std::byte> data) {
  std::vector<const TensorInfo*> by_place;
  by_place.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) by_place.push_back(&tensor);
  std::sort(by_place.begin(), by_place.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return a->bytes != b->bytes ? a->bytes < b->bytes : a->n_bytes < b->n_bytes;
  });
  uint64_t due = 0;
  for (const TensorInfo* tensor : by_place) {
    const uint64_t begin = static_cast<uint64_t>(tensor->bytes - data.data());
    if (begin != due) {
      return error("tensor '{}': starts at {}, expected {} ({})", tensor->name, begin, due,
                   begin < due ? "overlaps its neighbour" : "leaves a hole");
    }
    due += tensor->n_bytes;
  }
  if (due != data.size()) return error("tensors end at {}, the data at {}", due, data.size());
  return {};
}

Result<SafetensorsHeader> parse(std::span<const std::byte> file) {
  if (file.size() < 8) return error("{} bytes, too short for a header", file.size());
  uint64_t length;  // little-endian, as every machine quern builds for
  std::memcpy(&length, file.data(), 8);
  if (length > kMaxHeader) return error("header of {} bytes, limit {}", length, kMaxHeader);
  if (length > file.size() - 8) {
    return error("header of {} bytes exceeds the file of {}", length, file.size());
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, length);
  if (text.empty() || text[0] != '{') return error("header does not start with '{{'");
  QUERN_ASSIGN(const Json header, parse_json(text, "header"));
  const std::span<const std::byte> data = file.subspan(8 + length);

  SafetensorsHeader result;
  result.tensors.reserve(header.size());
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadataKey) {
      if (!entry.is_object()) return error("{} is not an object", kMetadataKey);
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) return error("{}: '{}' is not a string", kMetadataKey, key);
        result.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    Result<TensorInfo> tensor = read_entry(entry, data);
    if (!tensor) return error("tensor '{}': {}", name, tensor.error().message);
    tensor->name = name;
    result.tensors.push_back(std::move(*tensor));
  }
  std::sort(result.tensors.begin(), result.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  QUERN_TRY(check_cover(result.tensors, data));
  return result;
}

Result<std::string> quoted(const std::string& text) {
  try {
    return Json(text).dump();
  } catch (const std::exception&) {
    return error("name or metadata is not valid UTF-8");
  }
}

// As they lie in a file.
void put_in_order(std::vector<TensorSpec>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const int bits_a = dtype_bits(a.dtype), bits_b = dtype_bits(b.dtype);
    return bits_a != bits_b ? bits_a > bits_b : a.name < b.name;
  });
}

Result<std::string> header_text(const std::vector<TensorSpec>& order,
                                const std::map<std::string, std::string>& metadata) {
  std::string text = "{\"__metadata__\":{";
  std::map<std::string, std::string> entries = metadata;
  entries.emplace("format", "pt");  // some loaders refuse a file without it
  std::string_view separator = "";
  for (const auto& [key, value] : entries) {
    QUERN_ASSIGN(const std::string name, quoted(key));
    QUERN_ASSIGN(const std::string content, quoted(value));
    text += fmt::format("{}{}:{}", separator, name, content);
    separator = ",";
  }
  text += "}";
  uint64_t begin = 0;
  for (const TensorSpec& tensor : order) {
    QUERN_ASSIGN(const std::string name, quoted(tensor.name));
    const uint64_t end = begin + *stored_bytes(tensor.dtype, tensor.shape);
    text += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}", name,
                        dtype_name(tensor.dtype), to_string(tensor.shape), begin, end);
    begin = end;
  }
  text += "}";
  text.append(round_up<size_t>(8 + text.size(), 64) - 8 - text.size(), ' ');
  return text;
}

Status check_specs(const std::vector<TensorSpec>& tensors) {
  std::set<std::string_view> names;
  uint64_t total = 0;
  for (const TensorSpec& tensor : tensors) {
    const auto size = stored_bytes(tensor.dtype, tensor.shape);
    const auto sum = size ? checked_add(total, *size) : std::nullopt;
    if (!sum || *sum > static_cast<uint64_t>(INT64_MAX)) {
      return error("tensor '{}': shape {} of {} overflows or does not fill whole bytes",
                   tensor.name, to_string(tensor.shape), dtype_name(tensor.dtype));
    }
    total = *sum;
    if (tensor.name == kMetadataKey || !names.insert(tensor.name).second) {
      return error("tensor '{}': the name is taken", tensor.name);
    }
  }
  return {};
}

}  // namespace

std::optional<uint64_t> stored_bytes(DType dtype, const Shape& shape) {
  const std::optional<int64_t> count = element_count(shape);
  if (!count) return std::nullopt;
  const auto bits =
      checked_mul(static_cast<uint64_t>(*count), static_cast<uint64_t>(dtype_bits(dtype)));
  if (!bits || *bits % 8 != 0) return std::nullopt;
  return *bits / 8;
}

Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file) {
  try {
    Result<SafetensorsHeader> header = parse(file);
    if (!header) return error("safetensors: {}", header.error().message);
    return header;
  } catch (const std::exception& reason) {  // out of memory
    return error("safetensors: {}", reason.what());
  }
}

Result<std::unique_ptr<SafetensorsFile>> SafetensorsFile::open(const std::string& path) {
  auto file = std::make_unique<SafetensorsFile>();
  QUERN_ASSIGN(file->file_, MappedFile::open(path));
  Result<SafetensorsHeader> header = parse_safetensors(file->file_->bytes());
  if (!header) return error("{}: {}", path, header.error().message);
  file->header_ = std::move(*header);
  return file;
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  return find_tensor(header_.tensors, name);
}

Result<size_t> safetensors_header_bytes(std::vector<TensorSpec> tensors) {
  QUERN_TRY(check_specs(tensors));
  put_in_order(tensors);
  QUERN_ASSIGN(const std::string header, header_text(tensors, {}));
  return 8 + header.size();
}

Result<SafetensorsWriter> SafetensorsWriter::create(
    const std::string& path, std::vector<TensorSpec> tensors,
    const std::map<std::string, std::string>& metadata) {
  if (Status checked = check_specs(tensors); !checked)
    return error("{}: {}", path, checked.error().message);
  put_in_order(tensors);
  const Result<std::string> header = header_text(tensors, metadata);
  if (!header) return error("{}: {}", path, header.error().message);
  if (header->size() > kMaxHeader) {
    return error("{}: header of {} bytes, limit {}", path, header->size(), kMaxHeader);
  }
  QUERN_ASSIGN(AtomicFile file, AtomicFile::create(path));
  const uint64_t length = header->size();
  QUERN_TRY(file.write(&length, 8));
  QUERN_TRY(file.write(*header));
  SafetensorsWriter writer(std::move(file));
  writer.order_ = std::move(tensors);
  return writer;
}

bool SafetensorsWriter::is_complete() const {
  return written_ == *stored_bytes(order_[due_].dtype, order_[due_].shape);
}

Status SafetensorsWriter::append(std::string_view name, const void* data, size_t n_bytes) {
  while (due_ < order_.size() && order_[due_].name != name && is_complete()) {
    ++due_;
    written_ = 0;
  }
  if (due_ == order_.size()) return error("safetensors: tensor '{}': no tensor is due", name);
  const TensorSpec& spec = order_[due_];
  if (spec.name != name) return error("safetensors: tensor '{}': '{}' is due", name, spec.name);
  const uint64_t size = *stored_bytes(spec.dtype, spec.shape);
  if (n_bytes > size - written_) {
    return error("safetensors: tensor '{}': got {} bytes after {}, expected {} in all", name,
                 n_bytes, written_, size);
  }
  QUERN_TRY(file_.write(data, n_bytes));
  written_ += n_bytes;
  return {};
}

Status SafetensorsWriter::finish() {
  while (due_ < order_.size()) {
    if (!is_complete()) {
      return error("safetensors: tensor '{}': got {} bytes, expected {}", order_[due_].name,
                   written_, *stored_bytes(order_[due_].dtype, order_[due_].shape));
    }
    ++due_;
    written_ = 0;
  }
  return file_.commit();
}

}  // namespace quern
