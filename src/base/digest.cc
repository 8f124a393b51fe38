// SPDX-License-Identifier: Apache-2.0
#include "base/digest.h"

#include <fmt/format.h>
#include <xxhash.h>

namespace quern {

struct Digest::State {
  XXH3_state_t* hash = XXH3_createState();
};

Digest::Digest() : state_(std::make_unique<State>()) { XXH3_128bits_reset(state_->hash); }

Digest::~Digest() { XXH3_freeState(state_->hash); }

void Digest::add(const void* data, size_t size) { XXH3_128bits_update(state_->hash, data, size); }

std::string Digest::hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->hash);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string digest_of(std::string_view text) {
  Digest digest;
  digest.add(text);
  return digest.hex();
}

}  // namespace quern
