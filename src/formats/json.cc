// SPDX-License-Identifier: Apache-2.0
#include "formats/json.h"

#include <cmath>
#include <vector>

#include "base/file.h"

namespace quern {
namespace {

constexpr size_t kMaxDepth = 64;

// Receives nlohmann's events and builds the value with an explicit stack. Only the innermost
// container grows, so pointers to the open ones stay valid.
class StrictBuilder {
 public:
  using number_integer_t = Json::number_integer_t;
  using number_unsigned_t = Json::number_unsigned_t;
  using number_float_t = Json::number_float_t;
  using string_t = Json::string_t;
  using binary_t = Json::binary_t;

  bool null() { return put(Json(nullptr)) != nullptr; }
  bool boolean(bool value) { return put(Json(value)) != nullptr; }
  bool number_integer(number_integer_t value) { return put(Json(value)) != nullptr; }
  bool number_unsigned(number_unsigned_t value) { return put(Json(value)) != nullptr; }
  bool number_float(number_float_t value, const string_t& text) {
    if (!std::isfinite(value)) return fail(fmt::format("number {} is out of range", text));
    return put(Json(value)) != nullptr;
  }
  bool string(string_t& value) { return put(Json(std::move(value))) != nullptr; }
  bool binary(binary_t&) { return fail("binary value, expected JSON text"); }
  bool start_object(size_t) { return open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(string_t& name) {
    if (stack_.back()->contains(name)) return fail(fmt::format("duplicate key '{}'", name));
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception& reason) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." from the last '] ' on
    std::string_view text = reason.what();
    if (const size_t tag = text.find("] "); tag != text.npos) text.remove_prefix(tag + 2);
    return fail(fmt::format("{} (byte {})", text, position));
  }

  Json take() { return std::move(root_); }
  const std::string& problem() const { return problem_; }

 private:
  bool fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  Json* put(Json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.get_ref<Json::array_t&>().push_back(std::move(value));
      return &parent.get_ref<Json::array_t&>().back();
    }
    return &parent.get_ref<Json::object_t&>()
                .emplace(std::move(key_), std::move(value))
                .first->second;
  }

  bool open(Json container) {
    if (stack_.size() == kMaxDepth) return fail(fmt::format("nested deeper than {}", kMaxDepth));
    stack_.push_back(put(std::move(container)));
    return true;
  }

  bool close() {
    stack_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Json*> stack_;  // open containers, outermost first
  std::string key_;
  std::string problem_;
};

// The value as text, short enough for a message.
std::string shown(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 64) text = text.substr(0, 61) + "...";
  return text;
}

// The member, null if it is absent or JSON's null.
Result<const Json*> member(const Json& object, std::string_view key) {
  if (!object.is_object()) return error("got {}, expected an object with '{}'", shown(object), key);
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return nullptr;
  return &*found;
}

Result<const Json*> required(const Json& object, std::string_view key, std::string_view expected) {
  QUERN_ASSIGN(const Json* value, member(object, key));
  if (value == nullptr) return error("'{}' is missing, expected {}", key, expected);
  return value;
}

Result<int64_t> as_int(const Json& value, std::string_view key, int64_t low, int64_t high) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number <= static_cast<uint64_t>(INT64_MAX)) {
      const int64_t exact = static_cast<int64_t>(number);
      if (exact >= low && exact <= high) return exact;
    }
  } else if (value.is_number_integer()) {
    const int64_t exact = value.get<int64_t>();
    if (exact >= low && exact <= high) return exact;
  }
  return error("'{}' is {}, expected an integer in [{}, {}]", key, shown(value), low, high);
}

Result<double> as_number(const Json& value, std::string_view key) {
  if (value.is_number()) return value.get<double>();
  return error("'{}' is {}, expected a number", key, shown(value));
}

Result<std::string> as_string(const Json& value, std::string_view key) {
  if (value.is_string()) return value.get_ref<const std::string&>();
  return error("'{}' is {}, expected a string", key, shown(value));
}

}  // namespace

Result<Json> parse_json(std::string_view text, std::string_view where) {
  try {
    StrictBuilder builder;
    if (Json::sax_parse(text.begin(), text.end(), &builder)) return builder.take();
    return error("{}: {}", where, builder.problem());
  } catch (const std::exception& reason) {  // out of memory
    return error("{}: {}", where, reason.what());
  }
}

Result<Json> read_json_file(const std::string& path, size_t limit) {
  QUERN_ASSIGN(const std::string text, read_file(path, limit));
  return parse_json(text, path);
}

std::string valid_utf8(std::string_view text) {
  const Json string(text);
  return Json::parse(string.dump(-1, ' ', false, Json::error_handler_t::replace))
      .get<std::string>();
}

Result<int64_t> json_int(const Json& object, std::string_view key, int64_t low, int64_t high) {
  QUERN_ASSIGN(const Json* value, required(object, key, "an integer"));
  return as_int(*value, key, low, high);
}

Result<int64_t> json_int_or(const Json& object, std::string_view key, int64_t low, int64_t high,
                            int64_t fallback) {
  QUERN_ASSIGN(const Json* value, member(object, key));
  if (value == nullptr) return fallback;
  return as_int(*value, key, low, high);
}

Result<double> json_number(const Json& object, std::string_view key) {
  QUERN_ASSIGN(const Json* value, required(object, key, "a number"));
  return as_number(*value, key);
}

Result<double> json_number_or(const Json& object, std::string_view key, double fallback) {
  QUERN_ASSIGN(const Json* value, member(object, key));
  if (value == nullptr) return fallback;
  return as_number(*value, key);
}

Result<bool> json_bool_or(const Json& object, std::string_view key, bool fallback) {
  QUERN_ASSIGN(const Json* value, member(object, key));
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  return error("'{}' is {}, expected true or false", key, shown(*value));
}

Result<std::string> json_string(const Json& object, std::string_view key) {
  QUERN_ASSIGN(const Json* value, required(object, key, "a string"));
  return as_string(*value, key);
}

Result<std::string> json_string_or(const Json& object, std::string_view key,
                                   std::string_view fallback) {
  QUERN_ASSIGN(const Json* value, member(object, key));
  if (value == nullptr) return std::string(fallback);
  return as_string(*value, key);
}

}  // namespace quern
