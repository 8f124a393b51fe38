// SPDX-License-Identifier: Apache-2.0
// The runtime against the reference forward and against other implementations' logits, and its
// promise that bits depend on neither threads nor batches.
#include "model/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/parallel.h"
#include "model/generate.h"
#include "model/model_test_util.h"
#include "model/reference_forward.h"

namespace quern {
namespace {

using test::fixture_names;
using test::fixture_path;
using test::read_json;

// As derived in reference_forward_test.cc: two float runs of the fixtures differ by less.
constexpr double kTolerance = 1e-4;

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";

std::unique_ptr<Model> open_model(const std::string& path,
                                  Activations activations = Activations::kExact) {
  auto model = Model::open(path, activations);
  EXPECT_TRUE(model.has_value()) << (model ? "" : model.error().message);
  return model ? *std::move(model) : nullptr;
}

std::vector<Token> golden_ids(const std::string& path) {
  return read_json(path + "/golden.json")["ids"];
}

Matrix<float> logits_of(const Model& model, const Matrix<float>& hidden) {
  Matrix<float> logits(hidden.rows(), model.desc().n_vocab);
  model.logits(hidden.view(), logits.view());
  return logits;
}

// Feeds ids in pieces of `chunk`; hidden rows of all of them.
Matrix<float> feed(const Model& model, KvCache& cache, std::span<const Token> ids, size_t chunk) {
  Matrix<float> hidden(static_cast<int64_t>(ids.size()), model.desc().d_model);
  for (size_t at = 0; at < ids.size(); at += chunk) {
    const auto piece = ids.subspan(at, std::min(chunk, ids.size() - at));
    const auto rows =
        hidden.view().row_range(static_cast<int64_t>(at), static_cast<int64_t>(piece.size()));
    const Status status = model.forward(cache, piece, rows);
    EXPECT_TRUE(status.has_value()) << (status ? "" : status.error().message);
  }
  return hidden;
}

Matrix<float> hidden_of(const Model& model, std::span<const Token> ids, size_t chunk,
                        DType dtype = DType::kF32) {
  KvCache cache = *model.make_cache(static_cast<int64_t>(ids.size()), KvRecipe::plain(dtype));
  return feed(model, cache, ids, chunk);
}

// Bits, so that zeros of other signs and NaNs count.
bool same_bits(const Matrix<float>& a, const Matrix<float>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         std::memcmp(a.data(), b.data(),
                     sizeof(float) * static_cast<size_t>(a.rows() * a.cols())) == 0;
}

bool row_is(const Matrix<float>& a, int64_t i, const Matrix<float>& b, int64_t j) {
  return std::memcmp(a.row(i), b.row(j), sizeof(float) * static_cast<size_t>(a.cols())) == 0;
}

TEST(Model, LogitsOfEveryFixtureAreThoseOfTheReference) {
  for (const std::string& name : fixture_names()) {
    const auto model = open_model(fixture_path(name));
    ASSERT_NE(model, nullptr);
    const std::vector<Token> ids = golden_ids(fixture_path(name));
    const Matrix<float> logits = logits_of(*model, hidden_of(*model, ids, ids.size()));
    const auto weights = DenseWeights<float>::load(model->files().store());
    const Matrix<float> reference =
        reference_logits(model->desc(), *weights, std::span<const int32_t>(ids));
    const Json golden = read_json(fixture_path(name) + "/golden.json")["logits"];
    double to_reference = 0, to_golden = 0;
    for (int64_t i = 0; i < logits.rows(); ++i) {
      const std::vector<double> row = golden[static_cast<size_t>(i)];
      for (int64_t j = 0; j < logits.cols(); ++j) {
        const double got = logits(i, j);
        to_reference = std::max(to_reference, std::abs(got - double(reference(i, j))));
        to_golden = std::max(to_golden, std::abs(got - row[static_cast<size_t>(j)]));
      }
    }
    EXPECT_LT(to_reference, kTolerance) << name;
    EXPECT_LT(to_golden, kTolerance) << name;
  }
}

// Keys and values in half precision: eps 2^-11 on values of magnitude below 10, averaged by
// attention, through at most three layers, moves logits by less than 0.1. Not so where a router
// chooses between experts that are almost equal.
TEST(Model, HalfCachesStayClose) {
  for (const std::string& name : fixture_names()) {
    const auto model = open_model(fixture_path(name));
    if (model->desc().layers.back().mlp.n_experts > 0) continue;
    const std::vector<Token> ids = golden_ids(fixture_path(name));
    const Matrix<float> full = logits_of(*model, hidden_of(*model, ids, ids.size()));
    const Matrix<float> half = logits_of(*model, hidden_of(*model, ids, ids.size(), DType::kF16));
    double distance = 0;
    for (int64_t i = 0; i < full.rows() * full.cols(); ++i) {
      distance = std::max(distance, std::abs(double(full.data()[i]) - double(half.data()[i])));
    }
    EXPECT_LT(distance, 0.1) << name;
    EXPECT_GT(distance, 0) << name;
  }
}

void expect_bits_of_any_cut(const std::string& name, Activations activations, DType dtype) {
  const auto model = open_model(fixture_path(name), activations);
  const std::vector<Token> ids = golden_ids(fixture_path(name));
  set_thread_count(1);
  const Matrix<float> whole = hidden_of(*model, ids, ids.size(), dtype);
  const Matrix<float> logits = logits_of(*model, whole);
  for (const int n_threads : {1, 2, 3}) {
    set_thread_count(n_threads);
    for (const size_t chunk : {size_t{1}, size_t{5}, ids.size()}) {
      const Matrix<float> hidden = hidden_of(*model, ids, chunk, dtype);
      EXPECT_TRUE(same_bits(hidden, whole))
          << name << " " << dtype_name(dtype) << " threads " << n_threads << " chunk " << chunk;
    }
    EXPECT_TRUE(same_bits(logits_of(*model, whole), logits)) << name;
  }
  for (int64_t i = 0; i < whole.rows(); ++i) {
    Matrix<float> one(1, whole.cols());
    std::copy_n(whole.row(i), whole.cols(), one.data());
    EXPECT_TRUE(row_is(logits_of(*model, one), 0, logits, i)) << name << " row " << i;
  }
}

TEST(Model, BitsDoNotDependOnThreadsOrChunks) {
  for (const std::string& name : fixture_names()) {
    expect_bits_of_any_cut(name, Activations::kExact, DType::kF32);
    expect_bits_of_any_cut(name, Activations::kExact, DType::kF16);
    expect_bits_of_any_cut(name, Activations::kBf16, DType::kF32);
  }
  set_thread_count(0);
}

// Rounding to 8 significant bits moves logits, and not far.
TEST(Model, Bf16IsNearTheExactModel) {
  for (const std::string& name : fixture_names()) {
    const std::vector<Token> ids = golden_ids(fixture_path(name));
    const auto exact = open_model(fixture_path(name));
    const auto bf16 = open_model(fixture_path(name), Activations::kBf16);
    const Matrix<float> a = logits_of(*exact, hidden_of(*exact, ids, ids.size()));
    const Matrix<float> b = logits_of(*bf16, hidden_of(*bf16, ids, ids.size()));
    double distance = 0, size = 0;
    for (int64_t i = 0; i < a.rows() * a.cols(); ++i) {
      distance += std::pow(double(a.data()[i]) - double(b.data()[i]), 2);
      size += std::pow(double(a.data()[i]), 2);
    }
    EXPECT_GT(distance, 0) << name;
    EXPECT_LT(distance, 0.02 * 0.02 * size) << name << " " << std::sqrt(distance / size);
  }
}

// Sequences of different lengths step together as each would alone.
TEST(Model, AStepOfManySequencesIsThatOfEach) {
  for (const std::string& name : fixture_names()) {
    const auto model = open_model(fixture_path(name));
    const std::vector<Token> ids = golden_ids(fixture_path(name));
    const auto n_vocab = static_cast<Token>(model->desc().n_vocab);
    for (const DType dtype : {DType::kF32, DType::kF16}) {
      std::vector<KvCache> together, alone;
      std::vector<Token> next;
      for (const size_t length : {size_t{1}, size_t{4}, size_t{17}, size_t{30}}) {
        for (std::vector<KvCache>* caches : {&together, &alone}) {
          caches->push_back(
              *model->make_cache(static_cast<int64_t>(ids.size()) + 4, KvRecipe::plain(dtype)));
          feed(*model, caches->back(), std::span(ids).first(length), length);
        }
        next.push_back(ids[length]);
      }
      const auto n = static_cast<int64_t>(next.size());
      for (int step = 0; step < 3; ++step) {
        Matrix<float> hidden(n, model->desc().d_model);
        ASSERT_TRUE(model->step_batch(together, next, hidden.view()));
        for (int64_t s = 0; s < n; ++s) {
          Matrix<float> one(1, model->desc().d_model);
          KvCache& cache = alone[static_cast<size_t>(s)];
          ASSERT_TRUE(model->forward(cache, {&next[static_cast<size_t>(s)], 1}, one.view()));
          EXPECT_TRUE(row_is(one, 0, hidden, s)) << name << " sequence " << s << " step " << step;
          EXPECT_EQ(cache.length(), together[static_cast<size_t>(s)].length());
        }
        for (Token& id : next) id = (id * 7 + 3) % n_vocab;
      }
    }
  }
}

TEST(Model, RefusalsAreClearAndChangeNothing) {
  const auto model = open_model(fixture_path("llama"));
  const std::vector<Token> ids = golden_ids(fixture_path("llama"));
  const int64_t d_model = model->desc().d_model;
  KvCache cache = *model->make_cache(12, KvRecipe::plain(DType::kF32));
  feed(*model, cache, std::span(ids).first(8), 8);
  const Matrix<float> expected = hidden_of(*model, std::span(ids).first(12), 12);

  Matrix<float> hidden(5, d_model);
  const Status full = model->forward(cache, std::span(ids).subspan(8, 5), hidden.view());
  ASSERT_FALSE(full.has_value());
  EXPECT_NE(full.error().message.find("8 + 5 tokens, room for 12"), std::string::npos)
      << full.error().message;
  EXPECT_EQ(cache.length(), 8);

  for (const Token bad : {-1, 128, 1 << 30}) {
    const std::vector<Token> broken = {ids[8], bad, ids[10]};
    const Status status = model->forward(cache, broken, hidden.view().row_range(0, 3));
    ASSERT_FALSE(status.has_value());
    EXPECT_NE(status.error().message.find(fmt::format("token {}", bad)), std::string::npos);
    EXPECT_EQ(cache.length(), 8);
  }

  std::vector<KvCache> caches;
  caches.push_back(*model->make_cache(12, KvRecipe::plain(DType::kF32)));
  caches.push_back(*model->make_cache(2, KvRecipe::plain(DType::kF32)));
  feed(*model, caches[0], std::span(ids).first(8), 8);
  feed(*model, caches[1], std::span(ids).first(2), 2);
  const std::vector<Token> next = {ids[8], ids[2]};
  const Status batch = model->step_batch(caches, next, hidden.view().row_range(0, 2));
  ASSERT_FALSE(batch.has_value());
  EXPECT_NE(batch.error().message.find("full"), std::string::npos);
  const std::vector<Token> unknown = {ids[8], 128};
  ASSERT_TRUE(caches[1].truncate(1));
  EXPECT_FALSE(model->step_batch(caches, unknown, hidden.view().row_range(0, 2)));
  EXPECT_EQ(caches[0].length(), 8);
  EXPECT_EQ(caches[1].length(), 1);

  // What follows the refusals is what would have followed without them.
  for (KvCache* kept : {&cache, &caches[0]}) {
    const Matrix<float> rest = feed(*model, *kept, std::span(ids).subspan(8, 4), 4);
    for (int64_t i = 0; i < 4; ++i) EXPECT_TRUE(row_is(rest, i, expected, 8 + i));
  }

  for (const int64_t capacity : {int64_t{0}, int64_t{-1}, model->desc().n_context + 1}) {
    const auto refused = model->make_cache(capacity);
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().kind, ErrorKind::kUsage);
  }
}

TEST(Model, TruncatingACacheGoesBack) {
  for (const char* name : {"llama", "gemma2", "mistral", "opt"}) {
    const auto model = open_model(fixture_path(name));
    const std::vector<Token> ids = golden_ids(fixture_path(name));
    const Matrix<float> whole = hidden_of(*model, ids, ids.size());
    KvCache cache =
        *model->make_cache(static_cast<int64_t>(ids.size()), KvRecipe::plain(DType::kF32));
    feed(*model, cache, std::span(ids).first(20), 20);
    ASSERT_TRUE(cache.truncate(9));
    const Matrix<float> rest = feed(*model, cache, std::span(ids).subspan(9), 4);
    for (int64_t i = 0; i < rest.rows(); ++i) EXPECT_TRUE(row_is(rest, i, whole, 9 + i)) << name;
  }
}

TEST(Model, TinyHasItsGoldenLogits) {
  const auto model = open_model(kTiny);
  ASSERT_NE(model, nullptr);
  const Json golden = read_json(kTiny + "/golden.json");
  const std::vector<Token> ids = golden["ids"];
  const Matrix<float> logits = logits_of(*model, hidden_of(*model, ids, ids.size()));
  const std::vector<double> last = golden["last_logits_first64"], log_sums = golden["logsumexp"];
  const std::vector<int64_t> argmax = golden["argmax"];
  for (size_t j = 0; j < last.size(); ++j) {
    EXPECT_NEAR(logits(logits.rows() - 1, static_cast<int64_t>(j)), last[j], 1e-3);
  }
  for (int64_t i = 0; i < logits.rows(); ++i) {
    const float* row = logits.row(i);
    double sum = 0;
    for (int64_t j = 0; j < logits.cols(); ++j) sum += std::exp(double(row[j]));
    EXPECT_NEAR(std::log(sum), log_sums[static_cast<size_t>(i)], 1e-3);
    EXPECT_EQ(std::max_element(row, row + logits.cols()) - row, argmax[static_cast<size_t>(i)]);
  }
}

TEST(Model, TinyContinuesGreedilyAsItsGoldenText) {
  const auto model = open_model(kTiny);
  const auto tokenizer = Tokenizer::open(kTiny);
  ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message;
  const Json golden = read_json(kTiny + "/golden.json");
  std::vector<Token> ids = (*tokenizer)->tokenize(golden["prompt"].get<std::string>());
  ids.insert(ids.begin(), model->desc().bos);
  EXPECT_EQ(ids, golden["ids"].get<std::vector<Token>>());
  for (const int64_t n_batch : {512, 7}) {
    GenerateOptions options;
    options.n_predict = 48;
    options.n_batch = n_batch;
    options.ignore_eos = true;
    options.sampler.temperature = 0;
    std::string text;
    options.on_text = [&](std::string_view piece) {
      text += piece;
      return true;
    };
    const auto result = generate(*model, **tokenizer, ids, options);
    ASSERT_TRUE(result.has_value()) << result.error().message;
    EXPECT_EQ(result->tokens, golden["greedy48"].get<std::vector<Token>>());
    EXPECT_EQ(text, golden["greedy_text"].get<std::string>());
    EXPECT_EQ(result->stop_reason, "length");
  }
}

TEST(Model, GenerationEndsWhereItMust) {
  const auto model = open_model(kTiny);
  const auto tokenizer = *Tokenizer::open(kTiny);
  const Json golden = read_json(kTiny + "/golden.json");
  const std::vector<Token> ids = golden["ids"];
  GenerateOptions options;
  options.sampler.temperature = 0;
  std::string text;
  options.on_text = [&](std::string_view piece) {
    text += piece;
    return true;
  };
  options.stop = {"major"};
  auto result = generate(*model, *tokenizer, ids, options);
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->stop_reason, "stop");
  EXPECT_EQ(text, " is founded. The city is now a ");
  options.stop.clear();
  options.n_ctx = static_cast<int64_t>(ids.size()) + 3;
  result = generate(*model, *tokenizer, ids, options);
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->stop_reason, "context");
  EXPECT_EQ(result->tokens.size(), 4u);  // the last needs no room: nothing reads it
  options.n_ctx = static_cast<int64_t>(ids.size()) - 1;
  EXPECT_FALSE(generate(*model, *tokenizer, ids, options).has_value());
  options.n_ctx = 0;
  options.on_text = [](std::string_view) { return false; };
  result = generate(*model, *tokenizer, ids, options);
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->stop_reason, "cancelled");
  EXPECT_FALSE(generate(*model, *tokenizer, {}, options).has_value());
}

}  // namespace
}  // namespace quern
