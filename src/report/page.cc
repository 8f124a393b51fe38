// SPDX-License-Identifier: Apache-2.0
#include "report/page.h"

#include <string_view>

#include "base/check.h"

namespace quern {
namespace {

// Made by CMake from page.html and what it includes; split where the data goes.
constexpr std::string_view kTemplate =
#include "report_page.inc"
    ;
constexpr std::string_view kDataPlace = "@DATA@";

}  // namespace

std::string script_json(const Json& json) {
  const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string safe;
  safe.reserve(text.size() + text.size() / 16);
  for (const char c : text) {
    // These occur in strings only, where an escape means the same.
    if (c == '<' || c == '>' || c == '&') {
      safe += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      safe += c;
    }
  }
  return safe;
}

std::string report_page(const Comparison& comparison) {
  const size_t place = kTemplate.find(kDataPlace);
  QUERN_CHECK(place != std::string_view::npos);
  std::string page(kTemplate.substr(0, place));
  page += script_json(to_json(comparison));
  page += kTemplate.substr(place + kDataPlace.size());
  return page;
}

}  // namespace quern
