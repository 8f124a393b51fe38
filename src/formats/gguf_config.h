// SPDX-License-Identifier: Apache-2.0
// The last step of a config made from GGUF metadata, per architecture: see gguf_arch.h.
#pragma once

#include "base/status.h"
#include "formats/gguf.h"

namespace quern {

Status finish_llama(const GgufContents& file, Json& config);
Status finish_mixtral(const GgufContents& file, Json& config);
Status finish_qwen2(const GgufContents& file, Json& config);
Status finish_qwen3(const GgufContents& file, Json& config);
Status finish_qwen3_moe(const GgufContents& file, Json& config);
Status finish_gemma2(const GgufContents& file, Json& config);
Status finish_phi3(const GgufContents& file, Json& config);
Status finish_gpt2(const GgufContents& file, Json& config);

}  // namespace quern
