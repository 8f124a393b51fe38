// SPDX-License-Identifier: Apache-2.0
#include "eval/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/parallel.h"
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

constexpr int64_t kLogitFloats = 4 << 20;  // logits held at once, per model

using Clock = std::chrono::steady_clock;

// One window: `input[i]` is fed, position i is scored against target[i] from `first_scored` on.
struct Window {
  std::vector<Token> input, target;
  int64_t first_scored = 0;
};

Result<std::vector<Window>> cut(const ModelDesc& model, std::span<const Token> text,
                                const EvalOptions& options) {
  const int64_t n = options.n_ctx;
  if (n < 4 || n > model.n_context) {
    return usage_error("context of {} tokens: expected 4..{}", n, model.n_context);
  }
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

class Evaluation {
 public:
  Evaluation(const Model& model, const Model* base) : model_(model), base_(base) {}

  Status add(const Window& window) {
    const auto n = static_cast<int64_t>(window.input.size());
    Matrix<float> hidden(n, model_.desc().d_model), base_hidden;
    const auto start = Clock::now();
    QUERN_ASSIGN(KvCache cache, model_.make_cache(n));
    QUERN_TRY(model_.forward(cache, window.input, hidden.view()));
    seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
    if (base_ != nullptr) {
      base_hidden = Matrix<float>(n, base_->desc().d_model);
      QUERN_ASSIGN(KvCache base_cache, base_->make_cache(n));
      QUERN_TRY(base_->forward(base_cache, window.input, base_hidden.view()));
    }
    const int64_t n_vocab = model_.desc().n_vocab;
    const int64_t chunk = std::max<int64_t>(1, kLogitFloats / n_vocab);
    for (int64_t first = window.first_scored; first < n; first += chunk) {
      const int64_t count = std::min(chunk, n - first);
      score(hidden.view().row_range(first, count),
            base_ == nullptr ? MatrixView<const float>()
                             : MatrixView<const float>(base_hidden.view().row_range(first, count)),
            {window.target.data() + first, static_cast<size_t>(count)});
    }
    n_fed_ += n;
    return {};
  }

  EvalResult result() {
    EvalResult result;
    result.n_tokens = static_cast<int64_t>(nll_.size());
    std::tie(result.nll, result.nll_stderr) = mean_and_stderr(nll_);
    result.ppl = std::exp(result.nll);
    result.ppl_stderr = result.ppl * result.nll_stderr;
    result.seconds = seconds_;
    result.tokens_per_second = seconds_ > 0 ? static_cast<double>(n_fed_) / seconds_ : 0;
    if (base_ == nullptr) return result;
    result.has_base = true;
    std::tie(result.kl_mean, result.kl_stderr) = mean_and_stderr(kl_);
    const auto p99 = kl_.begin() + static_cast<int64_t>(0.99 * static_cast<double>(kl_.size()));
    std::nth_element(kl_.begin(), p99, kl_.end());
    result.kl_p99 = *p99;
    result.top1 = static_cast<double>(n_same_top_) / static_cast<double>(kl_.size());
    return result;
  }

 private:
  void score(MatrixView<const float> hidden, MatrixView<const float> base_hidden,
             std::span<const Token> target) {
    const int64_t n = hidden.rows, n_vocab = model_.desc().n_vocab;
    Matrix<float> logits(n, n_vocab), base_logits;
    const auto start = Clock::now();
    model_.logits(hidden, logits.view());
    seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
    if (base_ != nullptr) {
      base_logits = Matrix<float>(n, n_vocab);
      base_->logits(base_hidden, base_logits.view());
    }
    const size_t at = nll_.size();
    nll_.resize(at + static_cast<size_t>(n));
    if (base_ != nullptr) kl_.resize(at + static_cast<size_t>(n));
    std::vector<char> same(static_cast<size_t>(n));
    parallel_for(n, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* q = logits.row(i);
        const double q_norm = kernels().log_sum_exp(q, n_vocab);
        const size_t place = at + static_cast<size_t>(i);
        nll_[place] = q_norm - q[target[static_cast<size_t>(i)]];
        if (base_ == nullptr) continue;
        const float* p = base_logits.row(i);
        kl_[place] = divergence(p, q, q_norm, n_vocab);
        same[static_cast<size_t>(i)] =
            argmax({p, static_cast<size_t>(n_vocab)}) == argmax({q, static_cast<size_t>(n_vocab)});
      }
    });
    n_same_top_ += std::count(same.begin(), same.end(), 1);
  }

  // KL(p || q) in double.
  static double divergence(const float* p, const float* q, double q_norm, int64_t n) {
    const double p_norm = kernels().log_sum_exp(p, n);
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      const double log_p = p[j] - p_norm;
      sum += std::exp(log_p) * (log_p - (q[j] - q_norm));
    }
    return sum;
  }

  static std::pair<double, double> mean_and_stderr(const std::vector<double>& values) {
    const auto n = static_cast<double>(values.size());
    double mean = 0, squares = 0;
    for (const double value : values) mean += value / n;
    for (const double value : values) squares += (value - mean) * (value - mean);
    return {mean, n > 1 ? std::sqrt(squares / (n - 1) / n) : 0};
  }

  const Model& model_;
  const Model* base_;
  std::vector<double> nll_, kl_;
  int64_t n_same_top_ = 0, n_fed_ = 0;
  double seconds_ = 0;
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

Result<EvalResult> evaluate(const Model& model, const Model* base, std::span<const Token> text,
                            const EvalOptions& options) {
  if (base != nullptr && base->desc().n_vocab != model.desc().n_vocab) {
    return usage_error("the base has {} tokens in its vocabulary, the model {}",
                       base->desc().n_vocab, model.desc().n_vocab);
  }
  QUERN_ASSIGN(const std::vector<Window> windows, cut(model.desc(), text, options));
  Evaluation evaluation(model, base);
  for (size_t i = 0; i < windows.size(); ++i) {
    if (!options.proceed(static_cast<double>(i) / static_cast<double>(windows.size()))) {
      return tl::unexpected(Error{ErrorKind::kCancelled, "cancelled"});
    }
    QUERN_TRY(evaluation.add(windows[i]));
  }
  return evaluation.result();
}

}  // namespace quern
