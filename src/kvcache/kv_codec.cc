// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_codec.h"

#include "spec/registry.h"

namespace quern {

#define QUERN_KV_CODEC(name) extern const KvCodecInfo name##_codec_info;
#include "kvcache/list.inc"
#undef QUERN_KV_CODEC

std::span<const KvCodecInfo> kv_codecs() {
  static const KvCodecInfo rows[] = {
#define QUERN_KV_CODEC(name) name##_codec_info,
#include "kvcache/list.inc"
#undef QUERN_KV_CODEC
  };
  return rows;
}

Status check_coded_head(std::string_view spec, int64_t d_head) {
  if (d_head % 16 != 0 || d_head > kMostLevelRows) {
    return error("kv: {} cannot code heads of {} dimensions: expected a multiple of 16, at most {}",
                 spec, d_head, kMostLevelRows);
  }
  return {};
}

Result<std::unique_ptr<KvCodec>> make_kv_codec(const spec::Call& call) {
  return spec::make(kv_codecs(), call, "kv codec");
}

}  // namespace quern
