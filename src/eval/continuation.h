// SPDX-License-Identifier: Apache-2.0
// Tokens fed to a cache, and how likely they are behind what it holds.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "model/model.h"

namespace quern {

// Feeds tokens; hidden [tokens.size(), d_model] is what the head reads of them. Some go through the
// layers at a time: more would be no faster, the result is the same however they are cut, and what
// lies between the layers stays small.
Status read_tokens(const Model& model, KvCache& cache, std::span<const Token> tokens,
                   MatrixView<float> hidden);

struct ContinuationScore {
  double log_likelihood = 0;  // of all tokens, in nats
  int64_t n_top = 0;          // tokens that the model ranks first, each behind those before it
};

// `before` [d_model]: what the head reads of the newest position in the cache. The last token is
// not fed.
Result<ContinuationScore> score_continuation(const Model& model, KvCache& cache,
                                             const float* before, std::span<const Token> tokens);

}  // namespace quern
