// SPDX-License-Identifier: Apache-2.0
#include "eval/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/check.h"
#include "base/digest.h"
#include "base/parallel.h"
#include "eval/continuation.h"
#include "eval/divergence.h"
#include "eval/mean.h"
#include "kernels/kernels.h"
#include "model/sampler.h"

namespace quern {
namespace {

struct ProtocolRow {
  Protocol protocol;
  std::string_view name;
};
constexpr ProtocolRow kProtocols[] = {
    {Protocol::kBosWindows, "bos_windows"},
    {Protocol::kStrided, "strided"},
    {Protocol::kSecondHalf, "second_half"},
};

using Clock = std::chrono::steady_clock;

// One window: `input[i]` is fed, position i is scored against target[i] from `first_scored` on.
struct Window {
  std::vector<Token> input, target;
  int64_t first_scored = 0;
};

// A model with a cache; `is_base`: what the base makes is what it would make.
struct Subject {
  const Model* model;
  KvCacheRecipe kv;
  bool is_base = false;
};

Result<std::vector<Window>> cut(const ModelDesc& model, std::span<const Token> text,
                                const EvalOptions& options) {
  const int64_t n = options.n_ctx;
  if (n < 4) return usage_error("context of {} tokens: expected 4..{}", n, model.n_context);
  QUERN_TRY(check_context(model, n, options.kv));
  if (options.protocol != Protocol::kStrided && model.bos < 0) {
    return usage_error("protocol {} needs a BOS token and the model has none; use strided",
                       protocol_name(options.protocol));
  }
  const auto total = static_cast<int64_t>(text.size());
  const int64_t run = options.protocol == Protocol::kBosWindows ? n - 1 : n;
  std::vector<Window> windows;
  for (int64_t at = 0; at + run <= total; at += run) {
    if (options.max_windows > 0 && static_cast<int64_t>(windows.size()) == options.max_windows) {
      break;
    }
    const std::span<const Token> piece =
        text.subspan(static_cast<size_t>(at), static_cast<size_t>(run));
    Window window;
    if (options.protocol == Protocol::kBosWindows) {
      window.input.push_back(model.bos);
      window.input.insert(window.input.end(), piece.begin(), piece.end() - 1);
      window.target.assign(piece.begin(), piece.end());
    } else {
      window.input.assign(piece.begin(), piece.end() - 1);
      window.target.assign(piece.begin() + 1, piece.end());
      if (options.protocol == Protocol::kSecondHalf) {
        window.input[0] = model.bos;
        window.first_scored = n / 2;
      }
    }
    windows.push_back(std::move(window));
  }
  if (windows.empty()) {
    return error("the text has {} tokens, expected at least one window of {}", total, run);
  }
  return windows;
}

// What a model makes of one window, a chunk of positions at a time.
class WindowRun {
 public:
  WindowRun(const Model& model, const KvCacheRecipe& kv) : model_(model), kv_(kv) {}

  Status forward(const Window& window) {
    const auto n = static_cast<int64_t>(window.input.size());
    if (hidden_.rows() != n) hidden_ = Matrix<float>(n, model_.desc().d_model);
    const auto start = Clock::now();
    QUERN_ASSIGN(KvCache cache, model_.make_cache(n, kv_));
    QUERN_TRY(read_tokens(model_, cache, window.input, hidden_.view()));
    seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
    kv_bytes_ += static_cast<double>(cache.n_bytes());
    kv_bits_ += cache.coded_bits();
    kv_held_bits_ += cache.held_bits();
    ++n_windows_;
    return {};
  }

  // Logits of as many positions as there are rows, from `first` on.
  void logits(int64_t first, MatrixView<float> logits) {
    const auto start = Clock::now();
    model_.logits(hidden_.view().row_range(first, logits.rows), logits);
    seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
  }

  double seconds() const { return seconds_; }
  // Of the cache behind a window, the mean.
  double kv_bytes() const { return mean(kv_bytes_); }
  double kv_bits() const { return mean(kv_bits_); }
  double kv_held_bits() const { return mean(kv_held_bits_); }

 private:
  const Model& model_;
  KvCacheRecipe kv_;
  Matrix<float> hidden_;
  double mean(double sum) const { return n_windows_ > 0 ? sum / n_windows_ : 0; }

  double seconds_ = 0, kv_bytes_ = 0, kv_bits_ = 0, kv_held_bits_ = 0;  // sums
  int n_windows_ = 0;
};

class Scores {
 public:
  // `base` null: no divergence, or that from `kept`. Rows are positions.
  void add(const Matrix<float>& logits, const Matrix<float>* base, const Baseline* kept,
           std::span<const Token> target) {
    const int64_t n = logits.rows(), n_vocab = logits.cols();
    const size_t at = nll_.size();
    nll_.resize(at + static_cast<size_t>(n));
    if (base != nullptr || kept != nullptr) kl_.resize(nll_.size());
    std::vector<BaselineDivergence> gaps(kept != nullptr ? static_cast<size_t>(n) : 0);
    std::vector<char> same(static_cast<size_t>(n));
    parallel_for(n, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const std::span<const float> q(logits.row(i), static_cast<size_t>(n_vocab));
        const double q_norm = kernels().log_sum_exp(q.data(), n_vocab);
        const size_t place = at + static_cast<size_t>(i);
        nll_[place] = q_norm - q[static_cast<size_t>(target[static_cast<size_t>(i)])];
        if (kept != nullptr) {
          BaselineDivergence& gap = gaps[static_cast<size_t>(i)];
          gap = kept->compare(static_cast<int64_t>(place), q);
          kl_[place] = gap.kl;
          same[static_cast<size_t>(i)] = gap.is_same_top ? 1 : 0;
        }
        if (base == nullptr) continue;
        const std::span<const float> p(base->row(i), static_cast<size_t>(n_vocab));
        const double p_norm = kernels().log_sum_exp(p.data(), n_vocab);
        kl_[place] = divergence(p.data(), p_norm, q.data(), q_norm, n_vocab);
        same[static_cast<size_t>(i)] = argmax(p) == argmax(q) ? 1 : 0;
      }
    });
    n_same_top_ += std::count(same.begin(), same.end(), 1);
    for (const BaselineDivergence& gap : gaps) {
      kl_least_ += gap.kl_least;
      draw_variance_ += gap.tail_variance;
    }
  }

  EvalResult result(double seconds, int64_t n_fed) {
    EvalResult result;
    result.n_tokens = static_cast<int64_t>(nll_.size());
    const Mean nll = mean_of(nll_);
    result.nll = nll.value;
    result.nll_stderr = nll.stderr_of;
    result.ppl = std::exp(result.nll);
    result.ppl_stderr = result.ppl * result.nll_stderr;
    result.seconds = seconds;
    result.tokens_per_second = seconds > 0 ? static_cast<double>(n_fed) / seconds : 0;
    if (kl_.empty()) return result;
    result.has_base = true;
    const Mean kl = mean_of(kl_);
    result.kl_mean = kl.value;
    result.kl_stderr = kl.stderr_of;
    const auto p99 = kl_.begin() + static_cast<int64_t>(0.99 * static_cast<double>(kl_.size()));
    std::nth_element(kl_.begin(), p99, kl_.end());
    result.kl_p99 = *p99;
    const auto n = static_cast<double>(kl_.size());
    result.top1 = static_cast<double>(n_same_top_) / n;
    result.kl_least = kl_least_ / n;
    result.kl_draw_stderr = std::sqrt(draw_variance_) / n;
    return result;
  }

 private:
  std::vector<double> nll_, kl_;
  int64_t n_same_top_ = 0;
  double kl_least_ = 0, draw_variance_ = 0;  // sums
};

class Evaluation {
 public:
  Evaluation(std::vector<Subject> subjects, const Model* base, const EvalOptions& options)
      : subjects_(std::move(subjects)),
        base_(base),
        kept_(options.baseline),
        save_(options.save),
        scores_(subjects_.size()) {
    for (const Subject& subject : subjects_) runs_.emplace_back(*subject.model, subject.kv);
    if (base != nullptr) base_run_.emplace(*base, KvCacheRecipe());
  }

  Status add(const Window& window) {
    const auto n = static_cast<int64_t>(window.input.size());
    if (base_ != nullptr) QUERN_TRY(base_run_->forward(window));
    for (size_t m = 0; m < subjects_.size(); ++m) {
      if (!subjects_[m].is_base) QUERN_TRY(runs_[m].forward(window));
    }
    const int64_t n_vocab = subjects_[0].model->desc().n_vocab;
    const int64_t chunk = logit_rows(n_vocab);
    for (int64_t first = window.first_scored; first < n; first += chunk) {
      const int64_t count = std::min(chunk, n - first);
      if (logits_.rows() != count) logits_ = base_logits_ = Matrix<float>(count, n_vocab);
      score({window.target.data() + first, static_cast<size_t>(count)}, first);
    }
    n_fed_ += n;
    return {};
  }

  std::vector<EvalResult> results() {
    std::vector<EvalResult> results;
    for (size_t m = 0; m < subjects_.size(); ++m) {
      const WindowRun& run = subjects_[m].is_base ? *base_run_ : runs_[m];
      results.push_back(scores_[m].result(run.seconds(), n_fed_));
      results.back().kv_bytes = run.kv_bytes();
      results.back().kv_bits = run.kv_bits();
      results.back().kv_held_bits = run.kv_held_bits();
      if (kept_ == nullptr) continue;
      results.back().has_baseline = true;
      results.back().base_ppl = std::exp(kept_->nll());
    }
    return results;
  }

 private:
  // Positions from `first` on, as many as there are rows of logits.
  void score(std::span<const Token> target, int64_t first) {
    const Matrix<float>* base = base_ == nullptr ? nullptr : &base_logits_;
    if (base != nullptr) base_run_->logits(first, base_logits_.view());
    for (size_t m = 0; m < subjects_.size(); ++m) {
      const bool is_base = subjects_[m].is_base;
      if (!is_base) runs_[m].logits(first, logits_.view());
      const Matrix<float>& logits = is_base ? base_logits_ : logits_;
      scores_[m].add(logits, base, kept_, target);
      if (m == 0 && save_ != nullptr) save_->add(logits, target);
    }
  }

  const std::vector<Subject> subjects_;
  const Model* base_;
  const Baseline* kept_;
  BaselineWriter* save_;
  std::vector<WindowRun> runs_;
  std::optional<WindowRun> base_run_;
  Matrix<float> base_logits_, logits_;  // of a few positions, [n, n_vocab]
  std::vector<Scores> scores_;
  int64_t n_fed_ = 0;
};

}  // namespace

std::optional<Protocol> protocol_from_name(std::string_view name) {
  for (const ProtocolRow& row : kProtocols) {
    if (row.name == name) return row.protocol;
  }
  return std::nullopt;
}

std::string_view protocol_name(Protocol protocol) {
  return kProtocols[static_cast<size_t>(protocol)].name;
}

namespace {

BaselineText text_of(const std::vector<Window>& windows, const EvalOptions& options) {
  BaselineText text;
  Digest digest;
  for (const Window& window : windows) {
    const auto n = static_cast<int64_t>(window.target.size());
    digest.add(window.input.data(), window.input.size() * sizeof(Token));
    digest.add(window.target.data(), window.target.size() * sizeof(Token));
    digest.add(&window.first_scored, sizeof(window.first_scored));
    text.n_positions += n - window.first_scored;
  }
  text.digest = digest.hex();
  text.protocol = protocol_name(options.protocol);
  text.n_ctx = options.n_ctx;
  text.n_windows = static_cast<int64_t>(windows.size());
  return text;
}

Status check_baseline(const Baseline& baseline, const Model& model, const BaselineText& text) {
  const BaselineText& kept = baseline.text();
  if (baseline.n_vocab() != model.desc().n_vocab) {
    return usage_error("the baseline has a vocabulary of {} tokens, the model {}",
                       baseline.n_vocab(), model.desc().n_vocab);
  }
  if (kept.protocol != text.protocol || kept.n_ctx != text.n_ctx ||
      kept.n_windows != text.n_windows || kept.n_positions != text.n_positions) {
    return usage_error("the baseline is of {} windows of {} by {}, asked for {} of {} by {}",
                       kept.n_windows, kept.n_ctx, kept.protocol, text.n_windows, text.n_ctx,
                       text.protocol);
  }
  if (kept.digest != text.digest) {
    return usage_error("the baseline is of another text, or of another tokenizer");
  }
  const std::string& source = model.files().packed().source_digest;
  if (!source.empty() && source != baseline.model()) {
    return usage_error("the baseline is of another model than the one this was made from ({}, {})",
                       baseline.model(), source);
  }
  return {};
}

}  // namespace

Result<BaselineText> baseline_text(const ModelDesc& model, std::span<const Token> text,
                                   const EvalOptions& options) {
  QUERN_ASSIGN(const std::vector<Window> windows, cut(model, text, options));
  return text_of(windows, options);
}

namespace {

Result<std::vector<EvalResult>> evaluate_all(std::vector<Subject> subjects, const Model* base,
                                             std::span<const Token> text,
                                             const EvalOptions& options) {
  QUERN_CHECK(!subjects.empty());
  const Model& first = *subjects[0].model;
  const int64_t n_vocab = (base != nullptr ? *base : first).desc().n_vocab;
  for (const Subject& subject : subjects) {
    if (subject.model->desc().n_vocab != n_vocab) {
      return usage_error("the models have vocabularies of {} and {} tokens",
                         subject.model->desc().n_vocab, n_vocab);
    }
  }
  QUERN_ASSIGN(const std::vector<Window> windows, cut(first.desc(), text, options));
  QUERN_TRY(check_ids(first.desc(), text));
  if (options.baseline != nullptr) {
    QUERN_CHECK(base == nullptr);
    const BaselineText asked = text_of(windows, options);
    for (const Subject& subject : subjects) {
      QUERN_TRY(check_baseline(*options.baseline, *subject.model, asked));
    }
  }
  Evaluation evaluation(std::move(subjects), base, options);
  for (size_t i = 0; i < windows.size(); ++i) {
    if (!options.proceed(static_cast<double>(i) / static_cast<double>(windows.size()))) {
      return cancelled();
    }
    QUERN_TRY(evaluation.add(windows[i]));
  }
  return evaluation.results();
}

}  // namespace

Result<std::vector<EvalResult>> evaluate(std::span<const Model* const> models, const Model* base,
                                         std::span<const Token> text, const EvalOptions& options) {
  std::vector<Subject> subjects;
  for (const Model* model : models) {
    subjects.push_back({model, options.kv, model == base && options.kv.is_plain()});
  }
  return evaluate_all(std::move(subjects), base, text, options);
}

Result<std::vector<EvalResult>> evaluate_caches(const Model& model,
                                                std::span<const KvCacheRecipe> caches,
                                                std::span<const Token> text,
                                                const EvalOptions& options) {
  std::vector<Subject> subjects;
  for (const KvCacheRecipe& cache : caches) {
    subjects.push_back({&model, cache, cache.text == KvCacheRecipe().text});
  }
  EvalOptions plain = options;
  plain.kv = {};
  return evaluate_all(std::move(subjects), &model, text, plain);
}

Result<EvalResult> evaluate(const Model& model, const Model* base, std::span<const Token> text,
                            const EvalOptions& options) {
  const Model* const one = &model;
  QUERN_ASSIGN(std::vector<EvalResult> results, evaluate({&one, 1}, base, text, options));
  return results[0];
}

Result<std::vector<std::vector<Token>>> window_inputs(const ModelDesc& model,
                                                      std::span<const Token> text,
                                                      const EvalOptions& options) {
  QUERN_ASSIGN(std::vector<Window> windows, cut(model, text, options));
  std::vector<std::vector<Token>> inputs;
  inputs.reserve(windows.size());
  for (Window& window : windows) inputs.push_back(std::move(window.input));
  return inputs;
}

}  // namespace quern
