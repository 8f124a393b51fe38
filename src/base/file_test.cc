// SPDX-License-Identifier: Apache-2.0
#include "base/file.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace quern {
namespace {

std::string scratch(const char* name) { return ::testing::TempDir() + "quern_file_" + name; }

TEST(File, AtomicFileAppearsOnlyOnCommit) {
  const std::string path = scratch("atomic");
  std::filesystem::remove(path);
  {
    auto file = AtomicFile::create(path);
    ASSERT_TRUE(file);
    ASSERT_TRUE(file->write("half"));
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  ASSERT_TRUE(write_file_atomically(path, "whole"));
  EXPECT_EQ(*read_file(path), "whole");
  EXPECT_FALSE(read_file(path, 4)) << "the limit holds";
}

TEST(File, MappedFileShowsTheBytesAndRefusesFolders) {
  const std::string path = scratch("mapped");
  ASSERT_TRUE(write_file_atomically(path, "abc"));
  const auto mapped = MappedFile::open(path);
  ASSERT_TRUE(mapped);
  ASSERT_EQ((*mapped)->bytes().size(), 3u);
  EXPECT_EQ(static_cast<char>((*mapped)->bytes()[2]), 'c');
  EXPECT_FALSE(MappedFile::open(::testing::TempDir()));
  EXPECT_FALSE(MappedFile::open(path + "-missing"));
}

}  // namespace
}  // namespace quern
