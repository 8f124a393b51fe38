// SPDX-License-Identifier: Apache-2.0
#include "calib/gradients.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/parallel.h"
#include "gaussian.h"
#include "linalg/cholesky.h"
#include "model/fused_source.h"
#include "model/model_test_util.h"
#include "model/reference_forward.h"
#include "transforms/transform.h"

namespace quern {
namespace {

using test::fixture_names;
using test::fixture_path;
using Labels = GradientOptions::Labels;

struct Opened {
  std::unique_ptr<ModelFiles> files;
  EndWeights ends;
  Corpus corpus;  // the ids of the golden file
  const ModelDesc& desc() const { return files->desc(); }
  LoadLayer load() const {
    return [this](int layer) { return files->layer(layer); };
  }
};

Opened open(const std::string& name) {
  auto files = ModelFiles::open(fixture_path(name));
  EXPECT_TRUE(files.has_value()) << (files ? "" : files.error().message);
  EndWeights ends = *(*files)->ends();
  const std::vector<Token> ids = test::read_json(fixture_path(name) + "/golden.json")["ids"];
  return {*std::move(files), std::move(ends), {{ids}, "", ""}};
}

GradientOptions of_text() {
  GradientOptions options;
  options.labels = Labels::kText;
  return options;
}

// Whole gradients, of matrices and of their biases.
class Whole final : public GradientVisitor {
 public:
  void linear(const WeightId& id, MatrixView<const float> x, MatrixView<const float> dy) override {
    Matrix<double>& w = of({id, Part::kWeight}, dy.cols, x.cols);
    accumulate_product(dy, x, w.view());
    Matrix<double>& bias = of({id, Part::kBias}, 1, dy.cols);
    for (int64_t i = 0; i < dy.rows; ++i) {
      for (int64_t j = 0; j < dy.cols; ++j) bias(0, j) += dy(i, j);
    }
  }
  void embedding(std::span<const Token> ids, MatrixView<const float> dy) override {
    Matrix<double>& w = of({{Role::kEmbed}, Part::kWeight}, n_vocab_, dy.cols);
    for (int64_t i = 0; i < dy.rows; ++i) {
      for (int64_t j = 0; j < dy.cols; ++j) w(ids[static_cast<size_t>(i)], j) += dy(i, j);
    }
  }
  Status end_layer(int layer) override {
    layers_.push_back(layer);
    return {};
  }
  explicit Whole(int64_t n_vocab) : n_vocab_(n_vocab) {}

  using Key = std::pair<WeightId, Part>;
  const std::map<Key, Matrix<double>>& all() const { return sums_; }
  const std::vector<int>& layers() const { return layers_; }

 private:
  Matrix<double>& of(const Key& key, int64_t rows, int64_t cols) {
    Matrix<double>& sum = sums_[key];
    if (sum.empty()) sum = Matrix<double>(rows, cols);
    return sum;
  }
  int64_t n_vocab_;
  std::map<Key, Matrix<double>> sums_;
  std::vector<int> layers_;
};

std::map<Whole::Key, Matrix<double>> gradients(const Opened& model,
                                               const GradientOptions& options) {
  Whole whole(model.desc().n_vocab);
  const Status done =
      visit_gradients(model.desc(), model.ends, model.load(), model.corpus, options, whole);
  EXPECT_TRUE(done.has_value()) << (done ? "" : done.error().message);
  return whole.all();
}

DenseWeights<double> dense(const Opened& model) {
  auto weights = DenseWeights<double>::load(model.files->store());
  EXPECT_TRUE(weights.has_value());
  return *std::move(weights);
}

// -log p of the text, in double by the reference forward.
double text_loss(const ModelDesc& desc, const DenseWeights<double>& weights,
                 std::span<const Token> ids, const ReferenceHooks<double>& hooks = {}) {
  const Matrix<double> logits = reference_logits(desc, weights, ids, hooks);
  double loss = 0;
  for (int64_t i = 0; i + 1 < logits.rows(); ++i) {
    double sum = 0;
    for (int64_t j = 0; j < logits.cols(); ++j) sum += std::exp(logits(i, j));
    loss += std::log(sum) - logits(i, ids[static_cast<size_t>(i + 1)]);
  }
  return loss;
}

Matrix<double> direction(int64_t rows, int64_t cols, uint64_t seed) {
  Matrix<double> e(rows, cols);
  Random random(seed);
  for (int64_t i = 0; i < rows * cols; ++i) e.data()[i] = random.gaussian();
  return e;
}

double dot(const Matrix<double>& a, const Matrix<double>& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows() * a.cols(); ++i) sum += a.data()[i] * b.data()[i];
  return sum;
}

void move(const Matrix<double>& e, double step, Matrix<double>& w) {
  for (int64_t i = 0; i < w.rows() * w.cols(); ++i) w.data()[i] += step * e.data()[i];
}

// Along a random direction E the loss must change by <G, E>, which is of the size of |G|. Gradients
// are float: of 3 layers with sums of 200 terms a relative error of 1e-5 is expected. Central
// differences are in double, of a loss near 150: rounded to 150 2^-52 / kStep = 3e-7 at a step that
// is small enough for the choice of experts to stay. Of a bias of keys without RoPE the gradient is
// zero, as the sum of terms of either sign that are near 1.
constexpr double kRelative = 2e-4, kAbsolute = 5e-6, kStep = 1e-7;

void expect_differences(const std::string& name) {
  const Opened model = open(name);
  auto expected = gradients(model, of_text());
  if (model.desc().tied_head) {
    Matrix<double>& both = expected.at({{Role::kEmbed}, Part::kWeight});
    move(expected.at({{Role::kLmHead}, Part::kWeight}), 1, both);
    expected.erase({{Role::kLmHead}, Part::kWeight});
  }
  DenseWeights<double> weights = dense(model);
  for (const WeightId& id : weight_ids(model.desc())) {
    // An expert may have met no token.
    if (id.expert < 0 && is_linear(id.role)) {
      EXPECT_TRUE(expected.contains({id, Part::kWeight})) << name << " " << to_string(id);
    }
  }
  uint64_t seed = 5;
  for (const auto& [key, gradient] : expected) {
    const auto& [id, part] = key;
    if (!has_weight(model.desc(), id, part)) continue;
    Matrix<double>& w = weights.edit(id, part);
    const Matrix<double> kept = w;
    const Matrix<double> e = direction(w.rows(), w.cols(), seed++);
    double losses[2];
    for (int side = 0; side < 2; ++side) {
      move(e, side == 0 ? kStep : -kStep, w);
      losses[side] = text_loss(model.desc(), weights, model.corpus.samples[0]);
      w = kept;
    }
    const double size = std::sqrt(dot(gradient, gradient));
    EXPECT_NEAR((losses[0] - losses[1]) / (2 * kStep), dot(gradient, e),
                kRelative * size + kAbsolute)
        << name << " " << to_string(id) << (part == Part::kBias ? ".bias" : "");
    if (part == Part::kWeight) {
      EXPECT_GT(size, 0) << name << " " << to_string(id);
    }
  }
}

TEST(Gradients, AgreeWithFiniteDifferencesForEveryMatrixOfEveryFixture) {
  for (const std::string& name : fixture_names()) expect_differences(name);
}

// Keys and values of every layer, and their gradients.
class EveryHead final : public GradientVisitor {
 public:
  struct OfLayer {
    Matrix<float> k, v, dk, dv;
  };
  void linear(const WeightId&, MatrixView<const float>, MatrixView<const float>) override {}
  void heads(int layer, const KeysAndValues& x, const KeysAndValues& dx) override {
    layers[layer] = {copy(x.k), copy(x.v), copy(dx.k), copy(dx.v)};
  }
  std::map<int, OfLayer> layers;

 private:
  static Matrix<float> copy(MatrixView<const float> x) {
    Matrix<float> y(x.rows, x.cols);
    for (int64_t i = 0; i < x.rows; ++i) std::copy_n(x.row(i), x.cols, y.row(i));
    return y;
  }
};

Matrix<double> in_double(const Matrix<float>& x) {
  Matrix<double> y(x.rows(), x.cols());
  std::copy_n(x.data(), x.rows() * x.cols(), y.data());
  return y;
}

// As caches code them: keys behind their norm and bias and before RoPE.
TEST(Gradients, OfKeysAndValuesAgreeWithFiniteDifferences) {
  for (const std::string& name : fixture_names()) {
    const Opened model = open(name);
    const DenseWeights<double> weights = dense(model);
    EveryHead heads;
    ASSERT_TRUE(
        visit_gradients(model.desc(), model.ends, model.load(), model.corpus, of_text(), heads));
    ASSERT_EQ(heads.layers.size(), model.desc().layers.size());
    uint64_t seed = 5;
    for (const auto& layer : heads.layers) {
      for (const bool is_keys : {true, false}) {
        const Matrix<float>& shown = is_keys ? layer.second.k : layer.second.v;
        const Matrix<double> gradient = in_double(is_keys ? layer.second.dk : layer.second.dv),
                             e = direction(shown.rows(), shown.cols(), seed++);
        double step = 0, error = 0, energy = 0;
        ReferenceHooks<double> hooks;
        (is_keys ? hooks.k_before_rope : hooks.v) = [&](int at, Matrix<double>& x) {
          if (at != layer.first) return;
          Matrix<double> difference = in_double(shown);
          move(x, -1, difference);
          error = dot(difference, difference);
          energy = dot(x, x);
          move(e, step, x);
        };
        double losses[2];
        for (int side = 0; side < 2; ++side) {
          step = side == 0 ? kStep : -kStep;
          losses[side] = text_loss(model.desc(), weights, model.corpus.samples[0], hooks);
        }
        EXPECT_LT(error, 1e-8 * energy) << name << " " << layer.first;
        const double size = std::sqrt(dot(gradient, gradient));
        EXPECT_GT(size, 0) << name << " " << layer.first;
        EXPECT_NEAR((losses[0] - losses[1]) / (2 * kStep), dot(gradient, e),
                    kRelative * size + kAbsolute)
            << name << " " << layer.first << (is_keys ? " keys" : " values");
      }
    }
  }
}

TEST(Gradients, AreTheSameForAnyNumberOfThreadsAndBesideOtherSamples) {
  for (const char* name : {"llama", "gemma2", "qwen2_moe"}) {
    Opened model = open(name);
    const std::vector<Token> ids = model.corpus.samples[0];
    const std::vector<Token> other(ids.begin() + 3, ids.end());
    set_thread_count(1);
    const auto alone = gradients(model, of_text());
    model.corpus.samples = {other};
    const auto of_other = gradients(model, of_text());
    set_thread_count(3);
    model.corpus.samples = {ids};
    EXPECT_EQ(gradients(model, of_text()), alone) << name;
    model.corpus.samples = {ids, other};
    auto both = gradients(model, of_text());
    set_thread_count(0);
    for (auto& [key, sum] : both) {
      const auto first = alone.find(key), second = of_other.find(key);
      if (first == alone.end() || second == of_other.end()) continue;
      Matrix<double> expected = first->second;
      move(second->second, 1, expected);
      EXPECT_EQ(sum, expected) << name << " " << to_string(key.first);
    }
  }
}

TEST(Gradients, LayersAreShownFromTheLast) {
  const Opened model = open("qwen3");
  Whole whole(model.desc().n_vocab);
  ASSERT_TRUE(visit_gradients(model.desc(), model.ends, model.load(), model.corpus, {}, whole));
  EXPECT_EQ(whole.layers(), (std::vector{2, 1, 0, -1}));
}

TEST(Gradients, DrawnLabelsDependOnTheSeedAlone) {
  const Opened model = open("llama");
  GradientOptions options;
  const auto first = gradients(model, options);
  EXPECT_EQ(gradients(model, options), first);
  options.seed = 1;
  EXPECT_NE(gradients(model, options), first);
}

// 1/2 <G, E>^2, the mean over draws, for one matrix.
class Projection final : public GradientVisitor {
 public:
  Projection(const WeightId& id, const Matrix<double>& e, int n_draws)
      : id_(id), e_(e), n_draws_(n_draws) {}
  void linear(const WeightId& id, MatrixView<const float> x, MatrixView<const float> dy) override {
    if (id != id_) return;
    Matrix<double> g(dy.cols, x.cols);
    accumulate_product(dy, x, g.view());
    const double along = dot(g, e_);
    half_square_ += along * along / (2 * n_draws_);
  }
  double half_square() const { return half_square_; }

 private:
  WeightId id_;
  const Matrix<double>& e_;
  int n_draws_;
  double half_square_ = 0;
};

// Summed over positions.
double divergence(const Matrix<double>& p, const Matrix<double>& q) {
  double kl = 0;
  for (int64_t i = 0; i < p.rows(); ++i) {
    double p_sum = 0, q_sum = 0, sum = 0;
    for (int64_t j = 0; j < p.cols(); ++j) {
      p_sum += std::exp(p(i, j));
      q_sum += std::exp(q(i, j));
    }
    for (int64_t j = 0; j < p.cols(); ++j) {
      sum += std::exp(p(i, j)) / p_sum * (p(i, j) - q(i, j));
    }
    kl += sum - std::log(p_sum / q_sum);
  }
  return kl;
}

// What gradients are for: 1/2 E[<G, E>^2] over drawn labels is the divergence that a small change E
// causes, summed over positions. The mean of n squares of Gaussians is within sqrt(2 / n).
TEST(Gradients, OfDrawnLabelsForetellTheDivergence) {
  GradientOptions options;
  options.n_draws = 400;
  for (const char* name : {"llama-untied", "gemma2", "qwen2_moe"}) {
    const Opened model = open(name);
    DenseWeights<double> weights = dense(model);
    const std::span<const Token> ids(model.corpus.samples[0]);
    const Matrix<double> before = reference_logits(model.desc(), weights, ids);
    const bool has_experts = model.desc().layers[0].mlp.n_experts > 0;
    for (const WeightId& id : {WeightId{Role::kK, 0}, WeightId{Role::kO, 0},
                               WeightId{Role::kUp, 0, has_experts ? 1 : -1}}) {
      Matrix<double>& w = weights.edit(id);
      const Matrix<double> kept = w;
      Matrix<double> e(w.rows(), w.cols());
      move(direction(w.rows(), w.cols(), 3), 1e-3, e);
      move(e, 1, w);
      const double kl = divergence(before, reference_logits(model.desc(), weights, ids));
      w = kept;
      Projection projection(id, e, options.n_draws);
      ASSERT_TRUE(visit_gradients(model.desc(), model.ends, model.load(), model.corpus, options,
                                  projection));
      EXPECT_NEAR(projection.half_square() / kl, 1, 4 * std::sqrt(2.0 / options.n_draws))
          << name << " " << to_string(id);
    }
  }
}

// The same function in another basis: what reads the stream in it still makes the same outputs.
TEST(Gradients, OfAFusedModelAreThoseOfTheOriginal) {
  for (const char* name : {"llama", "qwen3_moe", "opt"}) {
    for (const char* ends : {"online", "turned"}) {
      Opened model = open(name);
      const auto original = gradients(model, of_text());
      BasisChange basis;
      std::vector<std::string> notes;
      const TransformInfo* info = find_transform("rotate");
      const auto call = spec::parse_call(fmt::format("rotate(ends={})", ends));
      const auto transform = info->make(*spec::Params::bind(*call, info->params));
      ASSERT_TRUE((*transform)->plan(model.desc(), 3, basis, notes));
      const FusedSource fused(*model.files, basis);
      Whole whole(model.desc().n_vocab);
      const Status done = visit_gradients(
          fused.desc(), *fused.ends(), [&](int layer) { return fused.layer(layer); }, model.corpus,
          of_text(), whole);
      ASSERT_TRUE(done) << done.error().message;
      for (const auto& [key, expected] : original) {
        const Role role = key.first.role;
        const bool has_same_output = role == Role::kQ || role == Role::kK || role == Role::kGate ||
                                     role == Role::kUp || role == Role::kRouter;
        const bool is_same = key.second == Part::kBias
                                 ? has_same_output
                                 : role == Role::kEmbed && std::string_view(ends) == "online";
        if (!is_same) continue;
        Matrix<double> difference = whole.all().at(key);
        move(expected, -1, difference);
        // Gradients of a bias are sums of n rows of dy, each rounded as its largest value is.
        EXPECT_LT(std::sqrt(dot(difference, difference)),
                  1e-4 * std::sqrt(dot(expected, expected)) + 1e-5)
            << name << " " << ends << " " << to_string(key.first);
      }
    }
  }
}

TEST(Gradients, MarginsAndGramsAreSumsOverSamples) {
  const Matrix<float> x = gaussian(37, 19, 1), dy = gaussian(37, 23, 2);
  Matrix<float> squares(23, 19);
  Matrix<double> input(19, 19), output(23, 23);
  GradientMargins margins;
  GradientGrams grams;
  for (const auto& [first, n] : {std::pair<int64_t, int64_t>{0, 20}, {20, 17}}) {
    const auto x_part = x.view().row_range(first, n), dy_part = dy.view().row_range(first, n);
    add_squares(x_part, dy_part, squares.view());
    margins.add(x_part, dy_part);
    grams.add(x_part, dy_part);
    Matrix<double> g(23, 19);
    accumulate_product(dy_part, x_part, g.view());
    for (int64_t r = 0; r < 23; ++r) {
      for (int64_t c = 0; c < 19; ++c) {
        for (int64_t k = 0; k < 19; ++k) input(k, c) += g(r, k) * g(r, c);
        for (int64_t k = 0; k < 23; ++k) output(k, r) += g(k, c) * g(r, c);
      }
    }
  }
  // Entries are float sums of 20 terms, of the size of the diagonal.
  const auto expect_near = [](const Matrix<double>& a, const Matrix<double>& b) {
    ASSERT_EQ(a.rows(), b.rows());
    for (int64_t i = 0; i < a.rows(); ++i) {
      for (int64_t j = 0; j < a.cols(); ++j) {
        EXPECT_NEAR(a(i, j), b(i, j), 1e-5 * std::sqrt(b(i, i) * b(j, j)));
      }
    }
  };
  expect_near(grams.input, input);
  expect_near(grams.output, output);
  for (int64_t i = 0; i < 23; ++i) {
    double row = 0;
    for (int64_t j = 0; j < 19; ++j) row += squares(i, j);
    EXPECT_NEAR(row, output(i, i), 1e-5 * row);
    EXPECT_NEAR(margins.rows[static_cast<size_t>(i)], row, 1e-5 * row);
  }
  for (int64_t j = 0; j < 19; ++j) {
    EXPECT_NEAR(margins.columns[static_cast<size_t>(j)], input(j, j), 1e-5 * input(j, j));
  }
}

TEST(Gradients, SquaresAreMeansOverTokensAndDraws) {
  const Opened model = open("mistral");
  GradientOptions options;
  options.n_draws = 2;
  std::map<WeightId, double> means;
  SquaredGradients squares(model.corpus, options,
                           [&](const WeightId& id, const Matrix<float>& sum) -> Status {
                             for (int64_t i = 0; i < sum.rows() * sum.cols(); ++i) {
                               means[id] += sum.data()[i];
                             }
                             return {};
                           });
  class Margins final : public GradientVisitor {
   public:
    void linear(const WeightId& id, MatrixView<const float> x,
                MatrixView<const float> dy) override {
      of[id].add(x, dy);
    }
    std::map<WeightId, GradientMargins> of;
  } margins;
  for (GradientVisitor* visitor :
       {static_cast<GradientVisitor*>(&squares), static_cast<GradientVisitor*>(&margins)}) {
    ASSERT_TRUE(
        visit_gradients(model.desc(), model.ends, model.load(), model.corpus, options, *visitor));
  }
  EXPECT_EQ(means.size(), 7u * model.desc().layers.size() + 1);
  for (const auto& [id, mean] : means) {
    const std::vector<double>& rows = margins.of.at(id).rows;
    const double total = std::accumulate(rows.begin(), rows.end(), 0.0);
    const double n = 2.0 * static_cast<double>(model.corpus.n_tokens());
    EXPECT_NEAR(mean * n, total, 1e-4 * total) << to_string(id);
  }
}

TEST(Gradients, SayWhatTheyCannotDo) {
  const Opened model = open("llama");
  Whole whole(model.desc().n_vocab);
  GradientOptions none;
  none.n_draws = 0;
  EXPECT_FALSE(visit_gradients(model.desc(), model.ends, model.load(), model.corpus, none, whole));
  GradientOptions stopped;
  stopped.proceed = [](double done) { return done < 0.5; };
  const Status status =
      visit_gradients(model.desc(), model.ends, model.load(), model.corpus, stopped, whole);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().kind, ErrorKind::kCancelled);
  Corpus unknown;
  unknown.samples = {{1, 100000}};
  EXPECT_FALSE(visit_gradients(model.desc(), model.ends, model.load(), unknown, {}, whole));
  Corpus too_long;
  too_long.samples.emplace_back(static_cast<size_t>(model.desc().n_context + 1), 1);
  EXPECT_FALSE(visit_gradients(model.desc(), model.ends, model.load(), too_long, {}, whole));
}

}  // namespace
}  // namespace quern
