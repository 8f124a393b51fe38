// SPDX-License-Identifier: Apache-2.0
#include "eval/continuation.h"

#include <algorithm>

#include "kernels/kernels.h"
#include "model/sampler.h"

namespace quern {

Status read_tokens(const Model& model, KvCache& cache, std::span<const Token> tokens,
                   MatrixView<float> hidden) {
  constexpr int64_t kRun = 512;
  const auto n = static_cast<int64_t>(tokens.size());
  for (int64_t first = 0; first < n; first += kRun) {
    const int64_t count = std::min(kRun, n - first);
    QUERN_TRY(model.forward(cache,
                            tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
                            hidden.row_range(first, count)));
  }
  return {};
}

Result<ContinuationScore> score_continuation(const Model& model, KvCache& cache,
                                             const float* before, std::span<const Token> tokens) {
  const auto n = static_cast<int64_t>(tokens.size());
  Matrix<float> hidden(n, model.desc().d_model);
  std::copy_n(before, hidden.cols(), hidden.row(0));
  if (n > 1) {
    QUERN_TRY(model.forward(cache, tokens.first(static_cast<size_t>(n - 1)),
                            hidden.view().row_range(1, n - 1)));
  }
  Matrix<float> logits(n, model.desc().n_vocab);
  model.logits(hidden.view(), logits.view());
  ContinuationScore score;
  for (int64_t i = 0; i < n; ++i) {
    const std::span<const float> row(logits.row(i), static_cast<size_t>(logits.cols()));
    const Token token = tokens[static_cast<size_t>(i)];
    score.log_likelihood +=
        row[static_cast<size_t>(token)] - kernels().log_sum_exp(row.data(), logits.cols());
    if (argmax(row) == token) ++score.n_top;
  }
  return score;
}

}  // namespace quern
