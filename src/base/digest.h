// SPDX-License-Identifier: Apache-2.0
// Digests that say whether two things are the same (XXH3, 128 bits, 32 hex digits). No defence
// against somebody who wants a collision.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace quern {

class Digest {
 public:
  Digest();
  ~Digest();
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;
  void add(const void* data, size_t size);
  void add(std::string_view text) { add(text.data(), text.size()); }
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string digest_of(std::string_view text);

}  // namespace quern
