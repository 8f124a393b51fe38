// SPDX-License-Identifier: Apache-2.0
// Every transform with every choice it offers, on every architecture: it says that it cannot apply
// before anything is read or written, or it goes through to the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/file.h"
#include "fixtures.h"
#include "model/fuse.h"
#include "model/model_files.h"
#include "recipe/compress.h"
#include "recipe/recipe.h"
#include "scratch.h"

namespace quern {
namespace {

using test::fixture;
using test::fixtures;
using test::ScratchFolder;
using test::small;

// "rotate(sites=residual+value)" -> its elements.
std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// The call with all other parameters at their defaults; required ones have the text of the least.
std::string call_of(const TransformInfo& info, std::string_view param, const std::string& value) {
  std::string text(info.name);
  const char* before = "(";
  for (const spec::ParamSpec& spec : info.params) {
    std::string given = spec.name == param ? value : "";
    if (given.empty() && spec.fallback.empty()) given = "int(4, group=16)";
    if (given.empty()) continue;
    text += fmt::format("{}{}={}", before, spec.name, given);
    before = ", ";
  }
  return text + (*before == '(' ? "" : ")");
}

std::vector<std::string> texts_of(const TransformInfo& info) {
  std::vector<std::string> texts = {call_of(info, "", "")};
  for (const spec::ParamSpec& spec : info.params) {
    const bool is_choice = spec.kind == spec::ParamKind::kChoice;
    if (!is_choice && spec.kind != spec::ParamKind::kSet) continue;
    for (const std::string& value : split(spec.choices, '|')) {
      texts.push_back(call_of(info, spec.name, value));
    }
  }
  return texts;
}

// What stops the recipe by the description of the model alone; empty: nothing.
std::string obstacle(const Recipe& recipe, const ModelDesc& model) {
  BasisChange basis;
  std::vector<std::string> notes;
  for (size_t i = 0; i < recipe.transforms().size(); ++i) {
    basis.begin_stage(static_cast<int>(i));
    const ModelDesc desc = in_basis(model, basis);
    Status status = recipe.transforms()[i]->plan(desc, 0, basis, notes);
    if (status) status = check_form(basis, model);
    if (!status) return status.error().message;
  }
  const Status status = check_basis(basis, in_basis(model, basis));
  return status ? "" : status.error().message;
}

// Runs the recipe; `reason` is what its description says against it.
void expect_outcome(const std::string& name, const std::string& text, const std::string& reason) {
  const std::string where = fmt::format("{} {}", name, text);
  const ScratchFolder scratch;
  CompressOptions options = small(fixture(name), scratch / "out", text);
  int n_events = 0;
  options.observe = [&](const Json&) {
    ++n_events;
    return true;
  };
  const auto result = compress(options);
  EXPECT_EQ(result ? "" : result.error().message, reason) << where;
  if (reason.empty()) return;
  EXPECT_EQ(n_events, 0) << where;
  EXPECT_FALSE(std::filesystem::exists(scratch / "out")) << where;
}

// body(transform, text, fixture, reason) for all of them.
template <class Body>
void for_all(const Body& body) {
  for (const TransformInfo& info : transforms()) {
    for (const std::string& text : texts_of(info)) {
      const auto recipe = Recipe::parse(text);
      ASSERT_TRUE(recipe.has_value()) << text << ": " << recipe.error().message;
      for (const std::string& name : fixtures()) {
        const auto files = ModelFiles::open(fixture(name));
        ASSERT_TRUE(files.has_value()) << name;
        body(std::string(info.name), text, name, obstacle(*recipe, (*files)->desc()));
      }
    }
  }
}

TEST(Declining, ATransformThatCannotApplySaysWhyBeforeAnythingIsDone) {
  std::map<std::string, int> n_applied, n_declined;
  for_all([&](const std::string& transform, const std::string& text, const std::string& name,
              const std::string& reason) {
    ++(reason.empty() ? n_applied : n_declined)[transform];
    if (reason.empty()) return;
    expect_outcome(name, text, reason);
    // Who declines, and why.
    EXPECT_EQ(reason.rfind(transform + ": ", 0), 0u) << reason;
    EXPECT_GT(reason.size(), transform.size() + 20) << reason;
  });
  for (const TransformInfo& info : transforms()) {
    EXPECT_GT(n_applied[std::string(info.name)], 0) << info.name;
  }
  // Norms behind attention, heads and widths without a Hadamard matrix, blocks that do not divide.
  for (const char* transform : {"slice", "rotate", "duquant"}) {
    EXPECT_GT(n_declined[transform], 0) << transform;
  }
}

TEST(SlowDeclining, ATransformThatDoesNotGoesThrough) {
  for_all([](const std::string&, const std::string& text, const std::string& name,
             const std::string& reason) {
    if (reason.empty()) expect_outcome(name, text, reason);
  });
}

}  // namespace
}  // namespace quern
