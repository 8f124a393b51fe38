// SPDX-License-Identifier: Apache-2.0
#include "eval/speed.h"

#include <algorithm>
#include <chrono>

#include "base/random.h"
#include "model/sampler.h"

namespace quern {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

Result<SpeedResult> measure_speed(const Model& model, const SpeedOptions& options) {
  const int64_t n_vocab = model.desc().n_vocab;
  Random random(options.seed);
  std::vector<Token> prompt;
  for (int64_t i = 0; i < std::max<int64_t>(1, options.n_prompt); ++i) {
    prompt.push_back(static_cast<Token>(random.below(static_cast<uint64_t>(n_vocab))));
  }
  SpeedResult result;
  result.bytes_per_token = model.bytes_per_token();
  for (int r = 0; r < options.repetitions; ++r) {
    const auto n_prompt = static_cast<int64_t>(prompt.size());
    QUERN_ASSIGN(KvCache cache, model.make_cache(n_prompt + options.n_generate));
    Matrix<float> hidden(n_prompt, model.desc().d_model), logits(1, n_vocab);
    auto start = Clock::now();
    QUERN_TRY(model.forward(cache, prompt, hidden.view()));
    MatrixView<float> last = hidden.view().row_range(n_prompt - 1, 1);
    model.logits(last, logits.view());
    result.prompt.push_back(static_cast<double>(n_prompt) / seconds_since(start));
    start = Clock::now();
    for (int64_t i = 0; i < options.n_generate; ++i) {
      const Token next = argmax({logits.data(), static_cast<size_t>(n_vocab)});
      QUERN_TRY(model.forward(cache, {&next, 1}, last));
      model.logits(last, logits.view());
    }
    if (options.n_generate > 0) {
      result.generated.push_back(static_cast<double>(options.n_generate) / seconds_since(start));
    }
  }
  result.prompt_median = median(result.prompt);
  result.generated_median = median(result.generated);
  return result;
}

}  // namespace quern
