// SPDX-License-Identifier: Apache-2.0
#include "eval/tasks.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/kernels.h"
#include "model/sampler.h"

namespace quern {
namespace {

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";

class Tasks : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = *Model::open(kTiny, Activations::kInt8);
    tokenizer_ = *Tokenizer::open(kTiny);
  }

  // A request in one forward pass of its own: log-likelihood, and whether it is greedy.
  std::pair<double, bool> alone(const TaskRequest& request) const {
    const RequestTokens tokens = *tokenize_request(*tokenizer_, request, false);
    std::vector<Token> ids = tokens.context;
    ids.insert(ids.end(), tokens.continuation.begin(), tokens.continuation.end());
    const auto most = static_cast<size_t>(model_->desc().n_context) + 1;
    if (ids.size() > most) ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(most));
    const auto n = static_cast<int64_t>(ids.size()) - 1;
    KvCache cache = *model_->make_cache(n);
    Matrix<float> hidden(n, model_->desc().d_model), logits(n, model_->desc().n_vocab);
    EXPECT_TRUE(model_->forward(cache, std::span(ids).first(ids.size() - 1), hidden.view()));
    model_->logits(hidden.view(), logits.view());
    double log = 0;
    bool is_greedy = true;
    const auto n_answer = static_cast<int64_t>(tokens.continuation.size());
    for (int64_t i = n - n_answer; i < n; ++i) {
      const std::span<const float> row(logits.row(i), static_cast<size_t>(logits.cols()));
      const Token token = ids[static_cast<size_t>(i + 1)];
      log += row[static_cast<size_t>(token)] - kernels().log_sum_exp(row.data(), logits.cols());
      is_greedy = is_greedy && argmax(row) == token;
    }
    return {log, is_greedy};
  }

  TaskResult run(const Task& task, const TaskOptions& options = {}) const {
    auto result = run_task(*model_, *tokenizer_, task, options);
    EXPECT_TRUE(result.has_value()) << (result ? "" : result.error().message);
    return *std::move(result);
  }

  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

Task choices(const std::string& context, const std::vector<std::string>& answers, int64_t gold) {
  Task task{"t", TaskKind::kChoices, {{}}};
  for (const std::string& answer : answers) {
    task.items[0].requests.push_back({context, " " + answer});
    task.items[0].lengths.push_back(static_cast<int64_t>(answer.size()));
  }
  task.items[0].gold = gold;
  return task;
}

TEST_F(Tasks, WhatChoicesShareIsComputedOnceToTheSameBits) {
  const Task task = choices("The capital of France is the city of",
                            {"Paris.", "a river that flows through the north", "the"}, 0);
  const TaskResult result = run(task);
  const TaskAnswer& answer = result.answers[0];
  std::vector<double> shares;
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(answer.log_likelihoods[i], alone(task.items[0].requests[i]).first) << i;
    shares.push_back(answer.log_likelihoods[i] / static_cast<double>(task.items[0].lengths[i]));
  }
  const auto& logs = answer.log_likelihoods;
  EXPECT_EQ(answer.pick, std::max_element(logs.begin(), logs.end()) - logs.begin());
  EXPECT_EQ(answer.pick_norm, std::max_element(shares.begin(), shares.end()) - shares.begin());
  // Three words cannot be as unlikely as eight; by character the eight win or lose on their own.
  EXPECT_GT(logs[2], logs[1]);
}

TEST_F(Tasks, ALongContextLosesItsBeginning) {
  std::string context;
  for (int i = 0; i < 600; ++i) context += fmt::format(" {} and", i);
  const Task task = choices(context, {"so on", "the end of it all"}, 1);
  const RequestTokens tokens = *tokenize_request(*tokenizer_, task.items[0].requests[0], false);
  ASSERT_GT(static_cast<int64_t>(tokens.context.size()), model_->desc().n_context);
  const TaskResult result = run(task);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(result.answers[0].log_likelihoods[i], alone(task.items[0].requests[i]).first);
  }
  std::string endless;
  for (int i = 0; i < 3000; ++i) endless += " more";
  const auto refused = run_task(*model_, *tokenizer_, choices("a", {endless}, 0), {});
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message.find("longer than the model's context"), std::string::npos);
}

TEST_F(Tasks, ATargetIsRightWhenGreedy) {
  const std::string context = "Once upon a time there was a little girl. She lived in a";
  const std::vector<Token> ids = tokenizer_->tokenize(context);
  KvCache cache = *model_->make_cache(64);
  Matrix<float> hidden(static_cast<int64_t>(ids.size()), model_->desc().d_model);
  ASSERT_TRUE(model_->forward(cache, ids, hidden.view()));
  Matrix<float> logits(1, model_->desc().n_vocab);
  model_->logits(hidden.view().row_range(hidden.rows() - 1, 1), logits.view());
  const Token best = argmax({logits.row(0), static_cast<size_t>(logits.cols())});
  const std::string word = tokenizer_->detokenize_middle(std::vector<Token>{best});
  ASSERT_EQ(tokenize_request(*tokenizer_, {context, word}, false)->continuation,
            std::vector<Token>{best});
  const Task task{
      "t", TaskKind::kTarget, {{{{context, word}}, {}, 0}, {{{context, " zebra"}}, {}, 0}}};
  const TaskResult result = run(task);
  EXPECT_TRUE(result.answers[0].is_right);
  EXPECT_FALSE(result.answers[1].is_right);
  EXPECT_EQ(result.accuracy.value, .5);
  EXPECT_DOUBLE_EQ(result.accuracy.stderr_of, std::sqrt(.5 / 2));
  EXPECT_DOUBLE_EQ(
      result.log_likelihood.value,
      (alone(task.items[0].requests[0]).first + alone(task.items[1].requests[0]).first) / 2);
}

TEST_F(Tasks, SpacesGoToTheContinuation) {
  // All that Python's str.isspace names, and an invisible space that it does not.
  for (const std::string spaces :
       {"  ", "\t\r\n", "\u00a0", "\u3000\u2028", "\x1c\x1f", "\xc2\x85"}) {
    const auto tokens = *tokenize_request(*tokenizer_, {"The end of" + spaces, "a day"}, false);
    EXPECT_EQ(tokens.context, tokenizer_->tokenize("The end of"));
    std::vector<Token> all = tokens.context;
    all.insert(all.end(), tokens.continuation.begin(), tokens.continuation.end());
    EXPECT_EQ(all, tokenizer_->tokenize("The end of" + spaces + "a day"));
  }
  const auto kept = *tokenize_request(*tokenizer_, {"The end of\u200b", "a day"}, false);
  EXPECT_EQ(kept.context, tokenizer_->tokenize("The end of\u200b"));
}

TEST_F(Tasks, AnEmptyContextIsBos) {
  const auto tokens = *tokenize_request(*tokenizer_, {"", " a day"}, false);
  EXPECT_EQ(tokens.context, std::vector<Token>{*tokenizer_->bos()});
  EXPECT_EQ(tokens.continuation, tokenizer_->tokenize(" a day"));
  const auto with = *tokenize_request(*tokenizer_, {"The", " a day"}, true);
  EXPECT_EQ(with.context[0], *tokenizer_->bos());
  EXPECT_EQ(with.context.size(), tokenizer_->tokenize("The").size() + 1);
}

TEST_F(Tasks, CanBeCancelled) {
  TaskOptions options;
  options.proceed = [](double) { return false; };
  const auto result = run_task(*model_, *tokenizer_, choices("a", {"b"}, 0), options);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().kind, ErrorKind::kCancelled);
}

TEST(PairedAccuracy, IsMcNemarsExactTest) {
  TaskResult base, other;
  const auto add = [&](bool before, bool after, int n) {
    for (int i = 0; i < n; ++i) {
      base.answers.push_back({});
      base.answers.back().is_right = before;
      other.answers.push_back({});
      other.answers.back().is_right = after;
    }
  };
  add(true, true, 40);
  add(false, false, 30);
  add(true, false, 9);
  add(false, true, 1);
  const PairedAccuracy paired = compare_paired(base, other);
  EXPECT_EQ(paired.n_won, 1);
  EXPECT_EQ(paired.n_lost, 9);
  EXPECT_DOUBLE_EQ(paired.difference.value, -8.0 / 80);
  EXPECT_NEAR(paired.p_value, 2 * 11 / 1024.0, 1e-12);
  EXPECT_EQ(compare_paired(base, base).p_value, 1);
}

}  // namespace
}  // namespace quern
