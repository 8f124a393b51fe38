// SPDX-License-Identifier: Apache-2.0
// Parameters of a named thing: declared as a table, checked against a parsed call, read by name.
// Errors list what is valid. The canonical form names every parameter that is not the default.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "spec/spec.h"

namespace quern::spec {

enum class ParamKind : uint8_t {
  kInt,     // whole number in [low, high]
  kNumber,  // in [low, high]
  kChoice,  // one of `choices` ("true|false")
  kSet,     // one or more of `choices` joined by '+'
  kCall,    // a named thing with parameters of its own (a codec)
};

struct ParamSpec {
  std::string_view name;
  ParamKind kind;
  std::string_view fallback;      // default as text; empty: required
  double low = 0, high = 0;       // kInt, kNumber
  std::string_view choices = {};  // "a|b|c"
  std::string_view help = {};
};

using ParamSpecs = std::span<const ParamSpec>;

// Every parameter of a call with its value, defaults filled in, in the order of the specs.
class Params {
 public:
  // Positional arguments fill the specs from the first on.
  static Result<Params> bind(const Call& call, ParamSpecs specs);

  int64_t integer(std::string_view name) const;
  double number(std::string_view name) const;
  const std::string& word(std::string_view name) const;
  bool flag(std::string_view name) const { return word(name) == "true"; }
  bool has(std::string_view name, std::string_view element) const;  // of a kSet
  const Call& call(std::string_view name) const;
  Call canonical() const;
  // Canonical text where the first parameter is a call, written as `inner`, the text of what it
  // made.
  Result<std::string> text_around(const std::string& inner) const;

 private:
  const Value& get(std::string_view name) const;
  std::string name_;
  ParamSpecs specs_;
  std::vector<Value> values_;
};

// "bits: 2..8, group: ... ": one line that says what a call accepts.
std::string describe(ParamSpecs specs);

}  // namespace quern::spec
