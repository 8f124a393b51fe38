// SPDX-License-Identifier: Apache-2.0
// How likely tokens are behind what a cache holds.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "model/model.h"

namespace quern {

struct ContinuationScore {
  double log_likelihood = 0;  // of all tokens, in nats
  int64_t n_top = 0;          // tokens that the model ranks first, each behind those before it
};

// `before` [d_model]: what the head reads of the newest position in the cache. The last token is
// not fed.
Result<ContinuationScore> score_continuation(const Model& model, KvCache& cache,
                                             const float* before, std::span<const Token> tokens);

}  // namespace quern
