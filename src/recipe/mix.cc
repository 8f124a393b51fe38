// SPDX-License-Identifier: Apache-2.0
#include "recipe/mix.h"

#include <algorithm>

namespace quern {
namespace {

constexpr double kMostBits = 32;

// quern's own codec from 1 to 5 bits, searched as its recipes by name do, and whole numbers above.
std::vector<std::string> default_menu() {
  std::vector<std::string> menu;
  for (int quarters = 4; quarters <= 20; ++quarters) {
    const double bits = quarters / 4.0;
    // 512 is the codec's default; texts are canonical.
    const char* survivors = bits <= 2 ? ", survivors=1024" : bits <= 3.25 ? "" : ", survivors=256";
    menu.push_back(fmt::format("ldlq(trellis({}{}), drift=0.75)", bits, survivors));
  }
  for (const int bits : {6, 8}) menu.push_back(fmt::format("rtn(int({}, group=64))", bits));
  menu.emplace_back(kKeep);
  return menu;
}

Result<MixEntry> make_entry(const spec::Call& call) {
  if (call.name == kKeep && call.args.empty()) return MixEntry{std::string(kKeep), nullptr};
  if (find_solver(call.name) == nullptr) {
    return usage_error("recipe: mix: '{}' is neither a solver nor '{}'", call.name, kKeep);
  }
  QUERN_ASSIGN(auto solver, make_solver(call));
  std::string text = solver->spec();
  return MixEntry{std::move(text), std::move(solver)};
}

bool is_default(const std::vector<MixEntry>& menu) {
  const std::vector<std::string> texts = default_menu();
  return std::equal(
      menu.begin(), menu.end(), texts.begin(), texts.end(),
      [](const MixEntry& entry, const std::string& text) { return entry.text == text; });
}

}  // namespace

Result<std::unique_ptr<Mix>> parse_mix(const spec::Call& call) {
  auto mix = std::make_unique<Mix>();
  for (size_t i = 0; i < call.args.size(); ++i) {
    const auto& [name, value] = call.args[i];
    if (value.kind == spec::Value::Kind::kNumber && (name == "bits" || (name.empty() && i == 0))) {
      if (!(value.number > 0 && value.number <= kMostBits)) {
        return usage_error("recipe: mix: bits is {}, expected more than 0, at most {}",
                           value.number, kMostBits);
      }
      mix->bits = value.number;
      continue;
    }
    if (name == "sensitivity") {
      if (value.text != "probes" && value.text != "gradients") {
        return usage_error("recipe: mix: sensitivity is '{}', expected probes or gradients",
                           value.text);
      }
      mix->sensitivity = value.text == "gradients" ? Sensitivity::kGradients : Sensitivity::kProbes;
      continue;
    }
    if (!name.empty() || value.kind == spec::Value::Kind::kNumber) {
      return usage_error("recipe: mix takes its bits, then stages: mix(3, ldlq(int(2)), {})",
                         kKeep);
    }
    const spec::Call entry =
        value.kind == spec::Value::Kind::kCall ? value.call[0] : spec::Call{value.text, {}};
    QUERN_ASSIGN(MixEntry made, make_entry(entry));
    for (const MixEntry& other : mix->menu) {
      if (other.text == made.text) return usage_error("recipe: mix: {} twice", made.text);
    }
    mix->menu.push_back(std::move(made));
  }
  if (!mix->menu.empty()) return mix;
  for (const std::string& text : default_menu()) {
    QUERN_ASSIGN(const spec::Call entry, spec::parse_call(text));
    QUERN_ASSIGN(MixEntry made, make_entry(entry));
    mix->menu.push_back(std::move(made));
  }
  return mix;
}

spec::Call print_mix(const Mix& mix) {
  spec::Call call{"mix", {}};
  if (mix.bits > 0) call.args.push_back({"", spec::number_value(mix.bits)});
  for (const MixEntry& entry : mix.menu) {
    if (is_default(mix.menu)) break;
    spec::Value value = spec::word_value(entry.text);
    if (entry.solver != nullptr) {
      value.kind = spec::Value::Kind::kCall;
      value.call = {*spec::parse_call(entry.text)};
      value.text.clear();
    }
    call.args.push_back({"", std::move(value)});
  }
  if (mix.sensitivity == Sensitivity::kGradients) {
    call.args.push_back({"sensitivity", spec::word_value("gradients")});
  }
  return call;
}

}  // namespace quern
