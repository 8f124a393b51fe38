// SPDX-License-Identifier: Apache-2.0
// What every codec of list.inc must keep, for each of its examples.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kvcache/kv_testing.h"

namespace quern {
namespace {

template <class Visit>
void for_examples(const Visit& visit) {
  for (const KvCodecInfo& info : kv_codecs()) {
    for (const std::string_view text : info.examples) {
      const auto codec = codec_of(text);
      ASSERT_NE(codec, nullptr) << text;
      for (const int64_t d_head : {16, 64, 80, 128}) {
        for (const KvSide side : kSides) {
          if (codec->check(side, d_head)) visit(*ready_codec(text, side, d_head), side, d_head);
        }
      }
    }
  }
}

TEST(KvCodecs, TextsAreCanonicalAndParseBack) {
  for_examples([](const KvCodec& codec, KvSide, int64_t) {
    EXPECT_EQ(codec_of(codec.spec())->spec(), codec.spec());
  });
}

TEST(KvCodecs, AnyBytesAreSafe) {
  for_examples([](const KvCodec& codec, KvSide side, int64_t d_head) {
    std::vector<std::byte> page(static_cast<size_t>(codec.page_bytes(side, d_head)));
    Random random(1);
    for (std::byte& byte : page) byte = static_cast<std::byte>(random.below(256));
    KvScratchMemory scratch;
    std::vector<float> x(static_cast<size_t>(kKeyBlock * d_head));
    floats_of(codec.read(side, d_head, page.data(), nullptr, scratch.view(d_head)),
              kKeyBlock * d_head, x.data());
  });
}

TEST(KvCodecs, PagesWithoutNumbersAreSafe) {
  for_examples([](const KvCodec& codec, KvSide side, int64_t d_head) {
    std::vector<float> x = gaussian_page(d_head, 2);
    for (size_t i = 0; i < x.size(); i += 7) {
      x[i] = i % 2 == 0 ? std::nanf("") : std::numeric_limits<float>::infinity();
    }
    coded(codec, side, d_head, x);
  });
}

}  // namespace
}  // namespace quern
