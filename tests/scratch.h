// SPDX-License-Identifier: Apache-2.0
// Folders of a test's own, and what tests compare of files.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>

#include "base/file.h"

namespace quern::test {

class ScratchFolder {
 public:
  ScratchFolder() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    static int n_made = 0;  // a test may have several
    std::string name = fmt::format("quern_{}_{}_{}_{}", info->test_suite_name(), info->name(),
                                   ::getpid(), n_made++);
    std::replace(name.begin(), name.end(), '/', '_');
    path_ = ::testing::TempDir() + name;
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  std::string operator/(std::string_view name) const { return fmt::format("{}/{}", path_, name); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::string content_of(const std::string& path) {
  const auto content = read_file(path);
  EXPECT_TRUE(content.has_value()) << (content ? "" : content.error().message);
  return content ? *content : "";
}

// Every file below a folder, by its relative path.
inline std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const auto name = std::filesystem::relative(entry.path(), folder).string();
    files[name] = content_of(entry.path().string());
  }
  return files;
}

// Reference models and texts in ../shared, or an empty path where there are none.
inline std::string shared_path(std::string_view name) {
  const char* root = std::getenv("QUERN_SHARED");
  const std::string path =
      fmt::format("{}/{}", root != nullptr ? root : QUERN_SOURCE_DIR "/../shared", name);
  return std::filesystem::exists(path) ? path : "";
}

}  // namespace quern::test
