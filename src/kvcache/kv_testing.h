// SPDX-License-Identifier: Apache-2.0
// What the tests of cache codecs share: codecs by text, Gaussian pages, a page there and back.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "kvcache/kv_codec.h"

namespace quern {

inline constexpr KvSide kSides[] = {KvSide::kKeys, KvSide::kValues};

inline std::unique_ptr<KvCodec> codec_of(std::string_view text) {
  return std::move(*make_kv_codec(*spec::parse_call(text)));
}

inline std::vector<float> gaussian_page(int64_t d_head, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(static_cast<size_t>(kKeyBlock * d_head));
  for (float& value : x) value = static_cast<float>(random.gaussian());
  return x;
}

inline std::vector<float> coded(const KvCodec& codec, KvSide side, int64_t d_head,
                                const std::vector<float>& x) {
  std::vector<std::byte> page(static_cast<size_t>(codec.page_bytes(side, d_head)));
  codec.encode(side, d_head, x.data(), page.data());
  std::vector<float> y(x.size());
  KvScratchMemory scratch;
  const KvOperand read = codec.read(side, d_head, page.data(), nullptr, scratch.view(d_head));
  const float* floats = floats_of(read, kKeyBlock * d_head, y.data());
  std::copy_n(floats, y.size(), y.begin());
  return y;
}

}  // namespace quern
