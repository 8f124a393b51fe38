// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_codec.h"

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
  std::string names;
  for (const KvCodecInfo& info : kv_codecs()) {
    if (info.name != call.name) {
      names += fmt::format("{}{}", names.empty() ? "" : " ", info.name);
      continue;
    }
    QUERN_ASSIGN(const spec::Params params, spec::Params::bind(call, info.params));
    return info.make(params);
  }
  return usage_error("kv: no codec '{}'; the codecs are {}", call.name, names);
}

}  // namespace quern
