// SPDX-License-Identifier: Apache-2.0
// The "normalizer", "pre_tokenizer" and "decoder" of a tokenizer.json.
#pragma once

#include "formats/json.h"
#include "tokenizer/decoder.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pretokenizer.h"

namespace quern::tok {

// Each takes the value of its key, which may be null: no steps.
Result<Normalizers> parse_normalizers(const Json& json);
Result<PreTokenizers> parse_pre_tokenizers(const Json& json);
Result<Decoders> parse_decoders(const Json& json);

// True if `json` is a step of this type or a Sequence that has one.
bool has_step(const Json& json, std::string_view type);

}  // namespace quern::tok
