// SPDX-License-Identifier: Apache-2.0
#include "eval/needle.h"

#include <algorithm>
#include <chrono>

#include "base/check.h"
#include "base/random.h"
#include "eval/continuation.h"

namespace quern {
namespace {

Status check(const ModelDesc& model, const NeedleOptions& o) {
  if (o.length < 2 || o.length % 2 != 0) {
    return usage_error("a needle of {} tokens: expected an even number of them", o.length);
  }
  // BOS, a token of filler for each depth, needles, cue and answer.
  const int64_t least = 1 + o.n_depths + (o.n_copies + 1) * o.length;
  if (o.n_ctx < least) {
    return usage_error("context of {} tokens: {} needles of {} at {} depths need {}", o.n_ctx,
                       o.n_copies, o.length, o.n_depths, least);
  }
  if (model.bos < 0) return usage_error("needles need a BOS token and the model has none");
  return {};
}

// One sequence: its cache, and what the head reads of its newest position.
struct Sequence {
  KvCache cache;
  std::vector<float> newest;  // [d_model]

  Sequence fork() const { return {cache.fork(), newest}; }
  Status read(const Model& model, std::span<const Token> tokens) {
    const auto n = static_cast<int64_t>(tokens.size());
    if (n == 0) return {};
    Matrix<float> hidden(n, model.desc().d_model);
    QUERN_TRY(read_tokens(model, cache, tokens, hidden.view()));
    newest.assign(hidden.row(n - 1), hidden.row(n - 1) + hidden.cols());
    return {};
  }
};

class NeedleRun {
 public:
  NeedleRun(const Model& model, const KvCacheRecipe& kv, const NeedleOptions& options,
            size_t n_samples)
      : model_(model), kv_(kv), options_(options) {
    const auto n = static_cast<size_t>(options.n_depths);
    result_.at.resize(n);
    for (size_t i = 0; i < n; ++i) {
      result_.depths.push_back((static_cast<double>(i) + .5) / static_cast<double>(n));
    }
    n_answers_ = static_cast<double>(n_samples * (n + 1));
  }

  // All depths of a sample share what stands before the needle.
  Status add(const NeedleSample& sample) {
    QUERN_ASSIGN(KvCache cache, model_.make_cache(options_.n_ctx, kv_));
    Sequence before{std::move(cache), {}};
    QUERN_TRY(before.read(model_, {&model_.desc().bos, 1}));
    const auto n_copies = static_cast<size_t>(options_.n_copies);
    const std::span<const Token> all = sample.filler,
                                 filler = all.first(all.size() - n_copies * sample.needle.size());
    size_t at = 0;
    for (size_t i = 0; i < result_.at.size(); ++i) {
      const auto end = static_cast<size_t>(result_.depths[i] * static_cast<double>(filler.size()));
      QUERN_TRY(before.read(model_, filler.subspan(at, end - at)));
      at = end;
      Sequence sequence = before.fork();
      for (size_t copy = 0; copy < n_copies; ++copy) {
        QUERN_TRY(sequence.read(model_, sample.needle));
      }
      QUERN_TRY(sequence.read(model_, filler.subspan(end)));
      QUERN_TRY(ask(sequence, sample.needle, result_.at[i]));
    }
    QUERN_TRY(before.read(model_, all.subspan(at)));
    QUERN_TRY(ask(before, sample.needle, result_.control));
    const auto n = static_cast<double>(result_.at.size());
    double recall = 0, log_likelihood = 0;
    for (const NeedleScores& scores : result_.at) {
      recall += scores.recall.back() / n;
      log_likelihood += scores.log_likelihood.back() / n;
    }
    result_.mean.recall.push_back(recall);
    result_.mean.log_likelihood.push_back(log_likelihood);
    return {};
  }

  NeedleResult result() { return std::move(result_); }

 private:
  Status ask(Sequence& sequence, const std::vector<Token>& needle, NeedleScores& scores) {
    if (!options_.proceed(n_done_++ / n_answers_)) {
      return cancelled();
    }
    const std::span<const Token> cue = std::span(needle).first(needle.size() / 2),
                                 answer = std::span(needle).subspan(cue.size());
    QUERN_TRY(sequence.read(model_, cue));
    model_.end_prompt(sequence.cache);
    result_.kv_bits += sequence.cache.coded_bits() / n_answers_;
    result_.kv_held_bits += sequence.cache.held_bits() / n_answers_;
    QUERN_ASSIGN(const ContinuationScore score,
                 score_continuation(model_, sequence.cache, sequence.newest.data(), answer));
    const auto n = static_cast<double>(answer.size());
    scores.recall.push_back(static_cast<double>(score.n_top) / n);
    scores.log_likelihood.push_back(score.log_likelihood / n);
    return {};
  }

  const Model& model_;
  const KvCacheRecipe& kv_;
  const NeedleOptions& options_;
  NeedleResult result_;
  double n_answers_ = 0, n_done_ = 0;
};

}  // namespace

Result<std::vector<NeedleSample>> needle_samples(const ModelDesc& model,
                                                 std::span<const Token> text,
                                                 const NeedleOptions& options) {
  QUERN_TRY(check(model, options));
  QUERN_TRY(check_ids(model, text));
  const int64_t n_filler = options.n_ctx - 1 - options.length;
  // Places of a needle before the filler or behind it.
  const int64_t n_rest = static_cast<int64_t>(text.size()) - n_filler;
  const int64_t n_places = n_rest - 2 * (options.length - 1);
  if (n_places < 1) {
    return error("the text has {} tokens, expected at least {}: filler, and needles on both sides",
                 text.size(), n_filler + 2 * options.length - 1);
  }
  std::vector<NeedleSample> samples;
  for (int64_t i = 0; i < options.n_samples; ++i) {
    const auto share = static_cast<double>(i) / static_cast<double>(options.n_samples);
    const auto first = static_cast<int64_t>(share * static_cast<double>(n_rest));
    Random random(options.seed, static_cast<uint64_t>(i));
    auto at = static_cast<int64_t>(random.below(static_cast<uint64_t>(n_places)));
    if (at > first - options.length) at += n_filler + options.length - 1;
    const auto run = [&](int64_t begin, int64_t n) {
      return std::vector<Token>(text.begin() + begin, text.begin() + begin + n);
    };
    samples.push_back({run(first, n_filler), run(at, options.length)});
  }
  return samples;
}

Result<NeedleResult> find_needles(const Model& model, const KvCacheRecipe& kv,
                                  std::span<const NeedleSample> samples,
                                  const NeedleOptions& options) {
  QUERN_TRY(check(model.desc(), options));
  const auto start = std::chrono::steady_clock::now();
  NeedleRun run(model, kv, options, samples.size());
  for (const NeedleSample& sample : samples) QUERN_TRY(run.add(sample));
  NeedleResult result = run.result();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

Mean paired_difference(const std::vector<double>& base, const std::vector<double>& other) {
  QUERN_CHECK(base.size() == other.size());
  std::vector<double> differences(base.size());
  std::transform(other.begin(), other.end(), base.begin(), differences.begin(), std::minus<>());
  return mean_of(differences);
}

}  // namespace quern
