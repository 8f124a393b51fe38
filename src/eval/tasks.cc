// SPDX-License-Identifier: Apache-2.0
#include "eval/tasks.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "base/check.h"
#include "eval/continuation.h"
#include "tokenizer/utf8.h"

namespace quern {
namespace {

using Clock = std::chrono::steady_clock;

// What Python's str.rstrip takes away: Unicode's white space and four separators of ASCII.
bool is_stripped(uint32_t code) {
  return tok::is_whitespace(code) || (code >= 0x1c && code <= 0x1f);
}

// Where the white space begins that a context ends in.
size_t end_of_text(std::string_view context) {
  size_t end = 0;
  for (size_t at = 0; at < context.size();) {
    const tok::Utf8Char c = tok::decode_utf8(context, at);
    at += std::max<size_t>(c.length, 1);
    if (c.length == 0 || !is_stripped(c.code)) end = at;
  }
  return end;
}

struct Likelihood {
  double log = 0;
  bool is_greedy = true;
};

class Answerer {
 public:
  Answerer(const Model& model, const KvCacheRecipe& kv) : model_(model), kv_(kv) {}

  // Continuations of one context.
  Status answer(std::span<const Token> context,
                const std::vector<std::span<const Token>>& continuations,
                std::vector<Likelihood>& out) {
    size_t longest = 0;
    for (const auto& continuation : continuations) {
      longest = std::max(longest, continuation.size());
      out.push_back({});
    }
    Likelihood* of = out.data() + (out.size() - continuations.size());
    // The last token of a continuation is never fed.
    const size_t n = context.size() + longest - 1;
    const auto room = static_cast<size_t>(model_.desc().n_context);
    if (n > room) return answer_cut(context, continuations, of);
    QUERN_ASSIGN(KvCache cache, model_.make_cache(static_cast<int64_t>(n), kv_));
    Matrix<float> behind(static_cast<int64_t>(context.size()), model_.desc().d_model);
    QUERN_TRY(model_.forward(cache, context, behind.view()));
    for (size_t i = 0; i < continuations.size(); ++i) {
      KvCache fork = cache.fork();
      QUERN_ASSIGN(
          const ContinuationScore score,
          score_continuation(model_, fork, behind.row(behind.rows() - 1), continuations[i]));
      of[i] = {score.log_likelihood, score.n_top == static_cast<int64_t>(continuations[i].size())};
    }
    return {};
  }

 private:
  // Contexts that lose their beginning, as much as each continuation needs.
  Status answer_cut(std::span<const Token> context,
                    const std::vector<std::span<const Token>>& continuations, Likelihood* of) {
    const auto room = static_cast<size_t>(model_.desc().n_context);
    for (size_t i = 0; i < continuations.size(); ++i) {
      const size_t n = continuations[i].size();
      if (n > room) {
        return error("an answer of {} tokens is longer than the model's context of {}", n, room);
      }
      const std::span<const Token> kept = context.last(std::min(context.size(), room + 1 - n));
      std::vector<Likelihood> one;
      QUERN_TRY(answer(kept, {continuations[i]}, one));
      of[i] = one[0];
    }
    return {};
  }

  const Model& model_;
  KvCacheRecipe kv_;
};

// The first of the largest.
int64_t pick_of(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

void judge(const Task& task, const TaskItem& item, TaskAnswer& answer) {
  if (task.kind == TaskKind::kTarget) {
    answer.pick = answer.pick_norm = answer.is_greedy[0] ? 0 : 1;
  } else {
    answer.pick = answer.pick_norm = pick_of(answer.log_likelihoods);
  }
  if (!item.lengths.empty()) {
    std::vector<double> shares = answer.log_likelihoods;
    for (size_t i = 0; i < shares.size(); ++i) {
      shares[i] /= static_cast<double>(std::max<int64_t>(item.lengths[i], 1));
    }
    answer.pick_norm = pick_of(shares);
  }
  answer.is_right = answer.pick == item.gold;
  answer.is_right_norm = answer.pick_norm == item.gold;
}

Status answer_item(const Tokenizer& tokenizer, const TaskItem& item, bool bos, Answerer& answerer,
                   TaskAnswer& answer) {
  std::vector<RequestTokens> requests;
  for (const TaskRequest& request : item.requests) {
    QUERN_ASSIGN(RequestTokens tokens, tokenize_request(tokenizer, request, bos));
    requests.push_back(std::move(tokens));
  }
  // Neighbours that share a context go together.
  std::vector<Likelihood> likelihoods;
  for (size_t first = 0, next = 0; first < requests.size(); first = next) {
    std::vector<std::span<const Token>> continuations;
    while (next < requests.size() && requests[next].context == requests[first].context) {
      continuations.emplace_back(requests[next++].continuation);
    }
    QUERN_TRY(answerer.answer(requests[first].context, continuations, likelihoods));
  }
  for (const Likelihood& likelihood : likelihoods) {
    if (!std::isfinite(likelihood.log)) return error("a log-likelihood is {}", likelihood.log);
    answer.log_likelihoods.push_back(likelihood.log);
    answer.is_greedy.push_back(likelihood.is_greedy);
  }
  return {};
}

void summarise(const Task& task, TaskResult& result) {
  std::vector<double> right, right_norm, logs;
  for (const TaskAnswer& answer : result.answers) {
    right.push_back(answer.is_right ? 1 : 0);
    right_norm.push_back(answer.is_right_norm ? 1 : 0);
    if (task.kind == TaskKind::kTarget) logs.push_back(answer.log_likelihoods[0]);
  }
  result.accuracy = mean_of(right);
  result.accuracy_norm = mean_of(right_norm);
  if (!logs.empty()) result.log_likelihood = mean_of(logs);
}

}  // namespace

Result<RequestTokens> tokenize_request(const Tokenizer& tokenizer, const TaskRequest& request,
                                       bool bos) {
  const size_t end = end_of_text(request.context);
  const std::string context = request.context.substr(0, end);
  const std::string both = request.context + request.continuation;
  RequestTokens tokens;
  std::vector<Token> whole = tokenizer.tokenize(both);
  tokens.context = tokenizer.tokenize(context);
  if (whole.size() <= tokens.context.size()) {
    return error("the answer '{}' has no token of its own behind its context",
                 request.continuation);
  }
  tokens.continuation.assign(whole.begin() + static_cast<std::ptrdiff_t>(tokens.context.size()),
                             whole.end());
  if (!bos && !tokens.context.empty()) return tokens;
  const std::optional<Token> first = tokenizer.bos() ? tokenizer.bos() : tokenizer.eos();
  if (!first || (bos && !tokenizer.bos())) {
    return error("the tokenizer has no {} token to begin with", bos ? "BOS" : "BOS or EOS");
  }
  tokens.context.insert(tokens.context.begin(), *first);
  return tokens;
}

Result<TaskResult> run_task(const Model& model, const Tokenizer& tokenizer, const Task& task,
                            const TaskOptions& options) {
  TaskResult result;
  Answerer answerer(model, options.kv);
  const auto start = Clock::now();
  for (size_t i = 0; i < task.items.size(); ++i) {
    if (!options.proceed(static_cast<double>(i) / static_cast<double>(task.items.size()))) {
      return cancelled();
    }
    TaskAnswer answer;
    const Status status = answer_item(tokenizer, task.items[i], options.bos, answerer, answer);
    if (!status) {
      return tl::unexpected(in_context(status.error(), fmt::format("{}: item {}", task.name, i)));
    }
    judge(task, task.items[i], answer);
    result.answers.push_back(std::move(answer));
  }
  summarise(task, result);
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return result;
}

PairedAccuracy compare_paired(const TaskResult& base, const TaskResult& other) {
  QUERN_CHECK(base.answers.size() == other.answers.size());
  PairedAccuracy paired;
  std::vector<double> differences;
  for (size_t i = 0; i < base.answers.size(); ++i) {
    const bool before = base.answers[i].is_right, after = other.answers[i].is_right;
    differences.push_back((after ? 1 : 0) - (before ? 1 : 0));
    paired.n_won += after && !before ? 1 : 0;
    paired.n_lost += before && !after ? 1 : 0;
  }
  paired.difference = mean_of(differences);
  // Were both alike, each of the n items that changed would be won or lost by the toss of a coin.
  const int64_t n = paired.n_won + paired.n_lost, less = std::min(paired.n_won, paired.n_lost);
  double tail = 0;
  for (int64_t k = 0; k <= less; ++k) {
    const auto m = static_cast<double>(n), j = static_cast<double>(k);
    tail += std::exp(std::lgamma(m + 1) - std::lgamma(j + 1) - std::lgamma(m - j + 1) -
                     m * std::log(2.0));
  }
  paired.p_value = n == 0 ? 1 : std::min(1.0, 2 * tail);
  return paired;
}

}  // namespace quern
