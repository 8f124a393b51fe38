// SPDX-License-Identifier: Apache-2.0
#include "eval/baseline.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/file.h"
#include "base/random.h"
#include "eval/evaluate.h"
#include "scratch.h"

namespace quern {
namespace {

using test::ScratchFolder;

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";

Matrix<float> random_logits(int64_t n, int64_t n_vocab, double spread, uint64_t seed) {
  Random random(seed);
  Matrix<float> logits(n, n_vocab);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n_vocab; ++j) {
      logits.row(i)[j] = static_cast<float>(spread * random.gaussian());
    }
  }
  return logits;
}

// The logits of a model that errs by Gaussian noise.
Matrix<float> noisy(const Matrix<float>& logits, double noise, uint64_t seed) {
  Random random(seed);
  Matrix<float> other(logits.rows(), logits.cols());
  for (int64_t i = 0; i < logits.rows(); ++i) {
    for (int64_t j = 0; j < logits.cols(); ++j) {
      other.row(i)[j] = logits.row(i)[j] + static_cast<float>(noise * random.gaussian());
    }
  }
  return other;
}

std::span<const float> row(const Matrix<float>& logits, int64_t i) {
  return {logits.row(i), static_cast<size_t>(logits.cols())};
}

std::vector<double> log_softmax(std::span<const float> x) {
  double sum = 0;
  for (const float value : x) sum += std::exp(static_cast<double>(value));
  std::vector<double> logs;
  for (const float value : x) logs.push_back(value - std::log(sum));
  return logs;
}

double divergence(std::span<const float> base, std::span<const float> model) {
  const std::vector<double> p = log_softmax(base), q = log_softmax(model);
  double sum = 0;
  for (size_t j = 0; j < p.size(); ++j) sum += std::exp(p[j]) * (p[j] - q[j]);
  return sum;
}

BaselineText text_of(int64_t n) { return {"digest", "strided", 8, 1, n}; }

Baseline kept(const Matrix<float>& logits, int64_t k, int64_t n_drawn, const std::string& path) {
  BaselineWriter writer(k, n_drawn);
  // In two calls, as evaluation adds them.
  const std::vector<int32_t> target(static_cast<size_t>(logits.rows()), 1);
  const int64_t half = logits.rows() / 2;
  for (const auto& [first, n] : {std::pair(int64_t{0}, half), {half, logits.rows() - half}}) {
    Matrix<float> part(n, logits.cols());
    std::copy_n(logits.row(first), n * logits.cols(), part.row(0));
    writer.add(part, std::span(target).first(static_cast<size_t>(n)));
  }
  EXPECT_TRUE(writer.write(path, text_of(logits.rows()), "model", "name").has_value());
  auto baseline = Baseline::open(path);
  EXPECT_TRUE(baseline.has_value()) << baseline.error().message;
  return *std::move(baseline);
}

// Halves keep log p to 2^-11 of itself (2^-12 and a margin for the sums of all).
double rounding(std::span<const float> base, std::span<const float> model) {
  const std::vector<double> p = log_softmax(base), q = log_softmax(model);
  double bound = 1e-6;
  for (size_t j = 0; j < p.size(); ++j) {
    const double error = std::abs(p[j]) * 0x1p-11;
    bound += std::exp(p[j]) * error * (std::abs(p[j] - q[j]) + error);
  }
  return bound;
}

TEST(Baseline, WithEveryTokenIsTheDivergence) {
  const ScratchFolder scratch;
  const Matrix<float> base = random_logits(9, 50, 3, 1), model = noisy(base, .3, 2);
  const Baseline baseline = kept(base, 50, 2, scratch / "b");
  for (int64_t i = 0; i < 9; ++i) {
    const BaselineDivergence got = baseline.compare(i, row(model, i));
    EXPECT_NEAR(got.kl, divergence(row(base, i), row(model, i)),
                rounding(row(base, i), row(model, i)));
    EXPECT_EQ(got.kl, got.kl_least);
    EXPECT_EQ(got.tail_variance, 0);
    EXPECT_NEAR(baseline.compare(i, row(base, i)).kl, 0, rounding(row(base, i), row(base, i)));
  }
}

TEST(Baseline, TheLeastIsNeverMore) {
  const ScratchFolder scratch;
  for (const double noise : {.01, .3, 3.0}) {
    const Matrix<float> base = random_logits(40, 300, 2, 3), model = noisy(base, noise, 4);
    double before = 0;
    for (const int64_t k : {1, 2, 7, 64, 299}) {
      const Baseline baseline = kept(base, k, 2, scratch / "b");
      double sum = 0;
      for (int64_t i = 0; i < 40; ++i) {
        const double least = baseline.compare(i, row(model, i)).kl_least;
        sum += least;
        EXPECT_GE(least, -1e-9);
        EXPECT_LE(least,
                  divergence(row(base, i), row(model, i)) + rounding(row(base, i), row(model, i)));
      }
      EXPECT_GT(sum, before * .999) << "more tokens, a better bound";
      before = sum;
    }
  }
}

TEST(Baseline, IsTheDivergenceOnAverageWithTheErrorThatItStates) {
  const ScratchFolder scratch;
  const int64_t n = 4000;
  const Matrix<float> base = random_logits(n, 200, 1.5, 5), model = noisy(base, .5, 6);
  const Baseline baseline = kept(base, 8, 4, scratch / "b");
  double difference = 0, squares = 0, variance = 0, least = 0, full = 0;
  for (int64_t i = 0; i < n; ++i) {
    const BaselineDivergence got = baseline.compare(i, row(model, i));
    const double kl = divergence(row(base, i), row(model, i)), gap = got.kl - kl;
    difference += gap;
    squares += gap * gap;
    variance += got.tail_variance;
    least += got.kl_least;
    full += kl;
  }
  EXPECT_LT(std::abs(difference), 4 * std::sqrt(variance));
  // Both estimate the same variance, from n numbers each; 10 % are six of their standard errors
  // were they Gaussian.
  EXPECT_NEAR(squares / variance, 1, .1);
  EXPECT_LT(least, .5 * full) << "the rest matters here";
}

TEST(Baseline, KnowsTheLikeliestTokenAndTheText) {
  const ScratchFolder scratch;
  Matrix<float> base = random_logits(3, 70000, 1, 7);  // more tokens than 16 bits number
  base.row(1)[69999] = 30;                             // all but certain
  const Baseline baseline = kept(base, 5, 3, scratch / "b");
  Matrix<float> model = base;
  model.row(2)[17] = 30;
  EXPECT_TRUE(baseline.compare(1, row(model, 1)).is_same_top);
  EXPECT_NEAR(baseline.compare(1, row(model, 1)).kl, 0, 1e-6);
  EXPECT_FALSE(baseline.compare(2, row(model, 2)).is_same_top);
  EXPECT_EQ(baseline.k(), 5);
  EXPECT_EQ(baseline.n_positions(), 3);
  EXPECT_EQ(baseline.text().protocol, "strided");
  double nll = 0;
  for (int64_t i = 0; i < 3; ++i) nll -= log_softmax(row(base, i))[1] / 3;
  EXPECT_NEAR(baseline.nll(), nll, 1e-5);
}

TEST(Baseline, DamagedFilesAreRefused) {
  const ScratchFolder scratch;
  kept(random_logits(4, 100, 1, 8), 6, 2, scratch / "b");
  const std::string image = *read_file(scratch / "b");
  const auto parse = [](const std::string& bytes) {
    return Baseline::parse(std::as_bytes(std::span(bytes))).has_value();
  };
  ASSERT_TRUE(parse(image));
  for (size_t size = 0; size < image.size(); size += 7) EXPECT_FALSE(parse(image.substr(0, size)));
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string other = image;
    const size_t at = other.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return other.replace(at, from.size(), to);
  };
  EXPECT_FALSE(parse(replaced("quern-baseline", "quern-basel1ne")));
  EXPECT_FALSE(parse(replaced("\\\"vocabulary\\\":100", "\\\"vocabulary\\\":005")));
  EXPECT_FALSE(parse(replaced("\\\"vocabulary\\\":100", "\\\"vocabulary\\\":  7")));
  // Any byte of the numbers set to a value of its own: refused, or numbers still.
  int n_refused = 0;
  const size_t data = image.size() - (4 * (6 + 2) * 4 + 4 * 8);
  for (size_t at = data; at < image.size(); ++at) {
    std::string other = image;
    other[at] = '\x7f';
    const auto baseline = Baseline::parse(std::as_bytes(std::span(other)));
    n_refused += baseline ? 0 : 1;
    const Matrix<float> model = random_logits(4, 100, 1, 9);
    for (int64_t i = 0; i < 4 && baseline; ++i) {
      EXPECT_TRUE(std::isfinite(baseline->compare(i, row(model, i)).kl));
    }
  }
  EXPECT_GT(n_refused, 0);
}

TEST(Baseline, MeasuresWhatTheBaseWouldAndRefusesAnother) {
  const ScratchFolder scratch;
  const auto base = *Model::open(kTiny, Activations::kExact);
  std::vector<Token> ids;
  for (Token id = 0; id < 400; ++id) ids.push_back(5 + id * id % 4000);
  EvalOptions options;
  options.n_ctx = 200;
  options.max_windows = 2;
  options.protocol = Protocol::kSecondHalf;
  BaselineWriter writer(4096, 2);
  options.save = &writer;
  ASSERT_TRUE(evaluate(*base, nullptr, ids, options).has_value());
  options.save = nullptr;
  const auto text = baseline_text(base->desc(), ids, options);
  ASSERT_TRUE(text.has_value());
  EXPECT_EQ(text->n_positions, 2 * 99);
  ASSERT_TRUE(writer.write(scratch / "b", *text, base->files().digest(), kTiny).has_value());
  const auto baseline = Baseline::open(scratch / "b");
  ASSERT_TRUE(baseline.has_value()) << baseline.error().message;
  options.kv = *KvRecipe::parse("kv(k=int(2), v=int(2))");  // so that there is a divergence
  const auto full = evaluate(*base, &*base, ids, options);
  options.baseline = &*baseline;
  const auto result = evaluate(*base, nullptr, ids, options);
  ASSERT_TRUE(full.has_value() && result.has_value());
  EXPECT_GT(full->kl_mean, .01);
  EXPECT_NEAR(result->kl_mean, full->kl_mean, 1e-3 * full->kl_mean);
  EXPECT_EQ(result->top1, full->top1);
  EXPECT_NEAR(result->kl_p99, full->kl_p99, 1e-3 * full->kl_p99);

  const auto refused = [&](const EvalOptions& o, std::span<const Token> of, const char* why) {
    const auto status = evaluate(*base, nullptr, of, o);
    ASSERT_FALSE(status.has_value());
    EXPECT_NE(status.error().message.find(why), std::string::npos) << status.error().message;
  };
  std::vector<Token> other = ids;
  other[70] += 1;
  refused(options, other, "another text");
  EvalOptions changed = options;
  changed.n_ctx = 32;
  refused(changed, ids, "windows of 200");
  changed = options;
  changed.protocol = Protocol::kStrided;
  refused(changed, ids, "second_half");
}

}  // namespace
}  // namespace quern
