// SPDX-License-Identifier: Apache-2.0
// f16: halves, as they are. Where only keys or only values are to be coded.
#include "kernels/kernels.h"
#include "kvcache/kv_codec.h"

namespace quern {
namespace {

class KvHalf final : public KvCodec {
 public:
  std::string spec() const override { return "f16"; }
  Status check(KvSide /*side*/, int64_t /*d_head*/) const override { return {}; }
  int64_t page_bytes(KvSide /*side*/, int64_t d_head) const override {
    return kKeyBlock * d_head * 2;
  }
  void encode(KvSide /*side*/, int64_t d_head, const float* x, std::byte* page) const override {
    kernels().float_to_f16(x, kKeyBlock * d_head, page);
  }
  KvOperand read(KvSide /*side*/, int64_t /*d_head*/, const std::byte* page,
                 const std::byte* /*next*/, const KvScratch& /*scratch*/) const override {
    return {.halves = page};
  }
  bool is_bare() const override { return false; }
};

constexpr std::string_view kExamples[] = {"f16"};

}  // namespace

extern const KvCodecInfo kv_half_codec_info;
const KvCodecInfo kv_half_codec_info = {
    .name = "f16",
    .params = {},
    .summary = "halves, as they are",
    .make = [](const spec::Params& /*params*/) -> Result<std::unique_ptr<KvCodec>> {
      return std::make_unique<KvHalf>();
    },
    .examples = kExamples,
};

}  // namespace quern
