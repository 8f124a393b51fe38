// SPDX-License-Identifier: Apache-2.0
#include "spec/params.h"

#include <cmath>

#include "base/check.h"

namespace quern::spec {
namespace {

bool contains(std::string_view choices, std::string_view word) {
  while (!choices.empty()) {
    const size_t bar = choices.find('|');
    if (choices.substr(0, bar) == word) return true;
    if (bar == std::string_view::npos) return false;
    choices.remove_prefix(bar + 1);
  }
  return false;
}

std::string range_text(const ParamSpec& spec) {
  switch (spec.kind) {
    case ParamKind::kInt:
    case ParamKind::kNumber:
      return fmt::format("{}..{}", spec.low, spec.high);
    case ParamKind::kChoice:
      return std::string(spec.choices);
    case ParamKind::kSet:
      return fmt::format("{} joined by +", spec.choices);
    case ParamKind::kCall:
      return "a call";
  }
  return {};
}

bool fits(const ParamSpec& spec, const Value& value) {
  switch (spec.kind) {
    case ParamKind::kInt:
      if (value.kind != Value::Kind::kNumber || value.number != std::floor(value.number)) {
        return false;
      }
      [[fallthrough]];
    case ParamKind::kNumber:
      return value.kind == Value::Kind::kNumber && value.number >= spec.low &&
             value.number <= spec.high;
    case ParamKind::kChoice:
      return value.kind == Value::Kind::kWord && contains(spec.choices, value.text);
    case ParamKind::kSet: {
      if (value.kind != Value::Kind::kWord) return false;
      std::string_view rest = value.text;
      for (;;) {
        const size_t plus = rest.find('+');
        if (!contains(spec.choices, rest.substr(0, plus))) return false;
        if (plus == std::string_view::npos) return true;
        rest.remove_prefix(plus + 1);
      }
    }
    case ParamKind::kCall:
      return value.kind != Value::Kind::kNumber;
  }
  return false;
}

// A bare word where a call is due is a call without arguments.
void normalise(const ParamSpec& spec, Value& value) {
  if (spec.kind != ParamKind::kCall || value.kind != Value::Kind::kWord) return;
  Call call;
  call.name = value.text;
  value = Value{};
  value.kind = Value::Kind::kCall;
  value.call.push_back(std::move(call));
}

Result<Value> default_value(const ParamSpec& spec) {
  QUERN_ASSIGN(const Call call, parse_call(fmt::format("x({})", spec.fallback)));
  QUERN_CHECK(call.args.size() == 1);
  return call.args[0].value;
}

}  // namespace

std::string describe(ParamSpecs specs) {
  std::string text;
  for (const ParamSpec& spec : specs) {
    if (!text.empty()) text += ", ";
    text += fmt::format("{}: {}", spec.name, range_text(spec));
    if (!spec.fallback.empty()) text += fmt::format(" (default {})", spec.fallback);
  }
  return text.empty() ? "no parameters" : text;
}

Result<Params> Params::bind(const Call& call, ParamSpecs specs) {
  Params params;
  params.name_ = call.name;
  params.specs_ = specs;
  std::vector<bool> is_set(specs.size(), false);
  params.values_.resize(specs.size());
  size_t next = 0;
  bool named = false;
  for (const Arg& arg : call.args) {
    size_t index = next;
    if (!arg.name.empty()) {
      named = true;
      for (index = 0; index < specs.size() && specs[index].name != arg.name;) ++index;
      if (index == specs.size()) {
        return usage_error("{}: no parameter '{}'; it takes {}", call.name, arg.name,
                           describe(specs));
      }
    } else if (named) {
      return usage_error("{}: the positional value {} follows a named one", call.name,
                         print(arg.value));
    } else if (next++ >= specs.size()) {
      return usage_error("{}: too many values; it takes {}", call.name, describe(specs));
    }
    if (is_set[index]) {
      return usage_error("{}: {} is given twice", call.name, specs[index].name);
    }
    if (!fits(specs[index], arg.value)) {
      return usage_error("{}: {} is {}, expected {}", call.name, specs[index].name,
                         print(arg.value), range_text(specs[index]));
    }
    is_set[index] = true;
    params.values_[index] = arg.value;
    normalise(specs[index], params.values_[index]);
  }
  for (size_t i = 0; i < specs.size(); ++i) {
    if (is_set[i]) continue;
    if (specs[i].fallback.empty()) {
      return usage_error("{}: {} is missing; it takes {}", call.name, specs[i].name,
                         describe(specs));
    }
    QUERN_ASSIGN(params.values_[i], default_value(specs[i]));
    normalise(specs[i], params.values_[i]);
  }
  return params;
}

const Value& Params::get(std::string_view name) const {
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i].name == name) return values_[i];
  }
  QUERN_CHECK(!"a parameter that the specs do not declare");
  return values_[0];
}

int64_t Params::integer(std::string_view name) const {
  return static_cast<int64_t>(get(name).number);
}
double Params::number(std::string_view name) const { return get(name).number; }
const std::string& Params::word(std::string_view name) const { return get(name).text; }
const Call& Params::call(std::string_view name) const { return get(name).call[0]; }

bool Params::has(std::string_view name, std::string_view element) const {
  std::string_view rest = word(name);
  for (;;) {
    const size_t plus = rest.find('+');
    if (rest.substr(0, plus) == element) return true;
    if (plus == std::string_view::npos) return false;
    rest.remove_prefix(plus + 1);
  }
}

Result<std::string> Params::text_around(const std::string& inner) const {
  Call call = canonical();
  QUERN_ASSIGN(call.args[0].value.call[0], parse_call(inner));
  return print(call);
}

Call Params::canonical() const {
  Call call;
  call.name = name_;
  bool positional = true;
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (!specs_[i].fallback.empty()) {
      Value fallback = *default_value(specs_[i]);
      normalise(specs_[i], fallback);
      if (values_[i] == fallback) {
        positional = false;
        continue;
      }
      positional = positional && i == 0;
    }
    call.args.push_back({positional ? "" : std::string(specs_[i].name), values_[i]});
  }
  return call;
}

}  // namespace quern::spec
