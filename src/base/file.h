// SPDX-License-Identifier: Apache-2.0
// Files as quern uses them: read-only maps, whole small files, and outputs that appear complete or
// not at all (written aside, synced, renamed).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace quern {

// A read-only map of a whole file; the bytes live as long as the object.
class MappedFile {
 public:
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Tells the system that [offset, offset + size) will not be needed soon.
  void release(size_t offset, size_t size) const;

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole of a file of at most `limit` bytes.
Result<std::string> read_file(const std::string& path, size_t limit = size_t{1} << 30);

// Writes to `path` + ".tmp" in the same folder; commit() syncs and renames. Without a commit the
// destructor removes the temporary file.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  Status write(const void* data, size_t size);
  Status write(std::string_view text) { return write(text.data(), text.size()); }
  Status commit();

 private:
  AtomicFile() = default;
  std::string path_, temporary_;
  int descriptor_ = -1;
};

Status write_file_atomically(const std::string& path, std::string_view content);

}  // namespace quern
