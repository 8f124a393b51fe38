// SPDX-License-Identifier: Apache-2.0
// The tiny models of tests/data/fixtures, and options that compress one in no time.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "recipe/compress.h"

namespace quern::test {

inline std::string fixture(std::string_view name) {
  return fmt::format("{}/tests/data/fixtures/{}", QUERN_SOURCE_DIR, name);
}

inline std::vector<std::string> fixtures() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(fixture(""))) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

inline CompressOptions small(const std::string& model, const std::string& out,
                             const std::string& recipe) {
  CompressOptions options;
  options.model = model;
  options.out = out;
  options.recipe = recipe;
  options.corpus.n_samples = 3;
  options.corpus.length = 16;
  return options;
}

}  // namespace quern::test
