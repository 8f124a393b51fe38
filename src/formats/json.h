// SPDX-License-Identifier: Apache-2.0
// JSON from untrusted files: no duplicate keys, depth at most 64, valid UTF-8, and typed getters
// that say where and what instead of throwing.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/status.h"

namespace quern {

using Json = nlohmann::json;

// `where` names the source in errors ("config.json").
Result<Json> parse_json(std::string_view text, std::string_view where);
Result<Json> read_json_file(const std::string& path, size_t limit = size_t{1} << 30);

// The text with bytes that are not UTF-8 (a file name may have any) replaced, fit for a JSON
// string.
std::string valid_utf8(std::string_view text);

// Typed access to `object[key]`. The form with a fallback returns it when the key is absent or
// null; a present value of the wrong type is always an error.
Result<int64_t> json_int(const Json& object, std::string_view key, int64_t low, int64_t high);
Result<int64_t> json_int_or(const Json& object, std::string_view key, int64_t low, int64_t high,
                            int64_t fallback);
Result<double> json_number(const Json& object, std::string_view key);
Result<double> json_number_or(const Json& object, std::string_view key, double fallback);
Result<bool> json_bool_or(const Json& object, std::string_view key, bool fallback);
Result<std::string> json_string(const Json& object, std::string_view key);
Result<std::string> json_string_or(const Json& object, std::string_view key,
                                   std::string_view fallback);

}  // namespace quern
