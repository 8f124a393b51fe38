// SPDX-License-Identifier: Apache-2.0
// What gradients foretell on the bundled model, beside what is measured.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/file.h"
#include "calib/gradients.h"
#include "calib/streams.h"
#include "eval/divergence.h"
#include "gaussian.h"
#include "linalg/cholesky.h"
#include "tokenizer/tokenizer.h"

namespace quern {
namespace {

constexpr float kChange = 0.03f;  // of a matrix, relative to its root mean square

// Independent Gaussian errors of a matrix, small enough for KL to be quadratic.
Matrix<float> noise(const WeightId& id, const Matrix<float>& w) {
  double square = 0;
  for (int64_t i = 0; i < w.rows() * w.cols(); ++i) {
    square += static_cast<double>(w.data()[i]) * w.data()[i];
  }
  const double rms = std::sqrt(square / static_cast<double>(w.rows() * w.cols()));
  Matrix<float> e = gaussian(w.rows(), w.cols(),
                             static_cast<uint64_t>(id.layer * 64) + static_cast<uint64_t>(id.role));
  for (int64_t i = 0; i < e.rows() * e.cols(); ++i) {
    e.data()[i] *= kChange * static_cast<float>(rms);
  }
  return e;
}

// What becomes of such errors under feedback, E M = noise with H = M D M^T (solvers/feedback.h).
void feed_back(MatrixView<const double> hessian, Matrix<float>& e) {
  Matrix<double> m(hessian.rows, hessian.rows);
  double mean = 0;
  for (int64_t i = 0; i < m.rows(); ++i) {
    mean += hessian(i, i) / static_cast<double>(m.rows());
    std::copy_n(hessian.row(i), m.cols(), m.row(i));
  }
  for (int64_t i = 0; i < m.rows(); ++i) m(i, i) += 0.01 * mean;
  ASSERT_TRUE(reverse_cholesky(m.view()));
  for (int64_t r = 0; r < e.rows(); ++r) {
    for (int64_t k = 0; k < e.cols(); ++k) {
      for (int64_t j = k + 1; j < e.cols(); ++j) e(r, j) -= e(r, k) * static_cast<float>(m(k, j));
    }
  }
}

// What reads the same as a role, as a LayerTap names it.
Role shown(Role role) {
  if (role == Role::kK || role == Role::kV) return Role::kQ;
  return role == Role::kUp ? Role::kGate : role;
}

class SlowGradients : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path = QUERN_SOURCE_DIR "/models/tiny";
    files_ = *ModelFiles::open(path);
    ends_ = *files_->ends();
    const auto text = read_file(QUERN_SOURCE_DIR "/models/evaluation.txt");
    const auto tokenizer = *Tokenizer::open(path);
    corpus_ =
        *corpus_from_text(desc(), *tokenizer, *text, "text", {.n_samples = 16, .length = 256});
    streams_.push_back(runs().embed(ends_));
    for (int i = 0; i < n_layers(); ++i) {
      layers_.push_back(*files_->layer(i));
      streams_.push_back(streams_.back());
      runs().advance(i, layers_.back(), streams_.back(), [] { return true; });
    }
    for (const WeightId& id : files_->store().weight_ids()) {
      if (id.layer >= 0 && is_linear(id.role)) errors_[id] = noise(id, *files_->store().load(id));
    }
  }
  SampleRuns runs() const { return SampleRuns(desc(), corpus_); }
  const ModelDesc& desc() const { return files_->desc(); }
  int n_layers() const { return static_cast<int>(desc().layers.size()); }

  // KL per token that the changes foretell by themselves: 1/2 sum squares E^2.
  std::map<WeightId, double> foretold(size_t n_samples, int n_draws) {
    std::map<WeightId, double> kl;
    GradientOptions options;
    options.n_draws = n_draws;
    Corpus part;
    part.samples.assign(corpus_.samples.begin(),
                        corpus_.samples.begin() + static_cast<int64_t>(n_samples));
    SquaredGradients visitor(part, options,
                             [&](const WeightId& id, const Matrix<float>& squares) -> Status {
                               if (id.layer >= 0) kl[id] = half_sum(id, squares);
                               return {};
                             });
    visit(part, options, visitor);
    return kl;
  }

  // The same with the squares of tokens by themselves: sum_t dy_tr^2 x_tc^2.
  std::map<WeightId, double> foretold_by_tokens() {
    class Tokens final : public GradientVisitor {
     public:
      void linear(const WeightId& id, MatrixView<const float> x,
                  MatrixView<const float> dy) override {
        if (id.layer < 0) return;
        Matrix<double>& sum = sums[id];
        if (sum.empty()) sum = Matrix<double>(dy.cols, x.cols);
        accumulate_product(squared(dy).view(), squared(x).view(), sum.view());
      }
      static Matrix<float> squared(MatrixView<const float> x) {
        Matrix<float> y(x.rows, x.cols);
        for (int64_t i = 0; i < x.rows; ++i) {
          for (int64_t j = 0; j < x.cols; ++j) y(i, j) = x(i, j) * x(i, j);
        }
        return y;
      }
      std::map<WeightId, Matrix<double>> sums;
    } tokens;
    visit(corpus_, {}, tokens);
    std::map<WeightId, double> kl;
    for (const auto& [id, sum] : tokens.sums) {
      kl[id] = half_sum(id, sum) / static_cast<double>(corpus_.n_tokens());
    }
    return kl;
  }

  void visit(const Corpus& corpus, const GradientOptions& options, GradientVisitor& visitor) {
    const auto load = [&](int layer) { return files_->layer(layer); };
    EXPECT_TRUE(visit_gradients(desc(), ends_, load, corpus, options, visitor));
  }

  template <class T>
  double half_sum(const WeightId& id, const Matrix<T>& squares) const {
    const Matrix<float>& e = errors_.at(id);
    double sum = 0;
    for (int64_t i = 0; i < e.rows() * e.cols(); ++i) {
      sum += static_cast<double>(squares.data()[i]) * e.data()[i] * e.data()[i] / 2;
    }
    return sum;
  }

  // 1/2 tr(output E input E^T) / tr(input)
  std::map<WeightId, double> foretold_by_grams() {
    class Grams final : public GradientVisitor {
     public:
      void linear(const WeightId& id, MatrixView<const float> x,
                  MatrixView<const float> dy) override {
        if (id.layer >= 0) of[id].add(x, dy);
      }
      std::map<WeightId, GradientGrams> of;
    } grams;
    visit(corpus_, {}, grams);
    std::map<WeightId, double> kl;
    for (const auto& [id, both] : grams.of) {
      const Matrix<float>& e = errors_.at(id);
      Matrix<double> e_input(e.rows(), e.cols());
      double trace = 0, sum = 0;
      for (int64_t k = 0; k < e.cols(); ++k) {
        trace += both.input(k, k);
        for (int64_t r = 0; r < e.rows(); ++r) {
          for (int64_t j = 0; j < e.cols(); ++j) e_input(r, j) += e(r, k) * both.input(k, j);
        }
      }
      for (int64_t r = 0; r < e.rows(); ++r) {
        for (int64_t s = 0; s < e.rows(); ++s) {
          double product = 0;
          for (int64_t j = 0; j < e.cols(); ++j) product += e_input(r, j) * e(s, j);
          sum += both.output(s, r) * product;
        }
      }
      kl[id] = sum / (2 * trace * static_cast<double>(corpus_.n_tokens()));
    }
    return kl;
  }

  void feed_errors_back() {
    for (auto& [id, e] : errors_) {
      const auto layer = static_cast<size_t>(id.layer);
      GramTap tap(shown(id.role), -1, -1);
      runs().observe(id.layer, layers_[layer], streams_[layer], tap, [] { return true; });
      feed_back(tap.hessian(-1), e);
    }
  }

  std::map<WeightId, double> measured() {
    const auto go = [] { return true; };
    std::map<WeightId, double> kl;
    for (const auto& [id, e] : errors_) {
      Matrix<float> w = *files_->store().load(id);
      for (int64_t i = 0; i < e.rows() * e.cols(); ++i) w.data()[i] += e.data()[i];
      LayerWeights changed = layers_[static_cast<size_t>(id.layer)];
      changed.at(id.role, id.expert) = dense_weight(std::move(w), {});
      Matrix<float> rows = streams_[static_cast<size_t>(id.layer)];
      runs().advance(id.layer, changed, rows, go);
      for (int i = id.layer + 1; i < n_layers(); ++i) {
        runs().advance(i, layers_[static_cast<size_t>(i)], rows, go);
      }
      kl[id] = divergence_of(streams_.back(), rows);
    }
    return kl;
  }

  double divergence_of(Matrix<float> before, Matrix<float> after) const {
    finish_hidden(desc(), ends_, before.view());
    finish_hidden(desc(), ends_, after.view());
    const int64_t n = before.rows(), chunk = logit_rows(desc().n_vocab);
    double sum = 0;
    for (int64_t row = 0; row < n; row += chunk) {
      const int64_t count = std::min(chunk, n - row);
      Matrix<float> p(count, desc().n_vocab), q(count, desc().n_vocab);
      head_logits(desc(), ends_, before.view().row_range(row, count), p.view());
      head_logits(desc(), ends_, after.view().row_range(row, count), q.view());
      std::vector<double> kl(static_cast<size_t>(count));
      divergences(p, q, kl);
      for (const double one : kl) sum += one;
    }
    return sum / static_cast<double>(n);
  }

  std::unique_ptr<ModelFiles> files_;
  EndWeights ends_;
  Corpus corpus_;
  std::vector<LayerWeights> layers_;
  std::vector<Matrix<float>> streams_;        // before every layer and behind the last
  std::map<WeightId, Matrix<float>> errors_;  // of every matrix of the layers
};

std::vector<double> ranks(const std::vector<double>& x) {
  std::vector<double> rank;
  for (const double one : x) {
    rank.push_back(static_cast<double>(
        std::count_if(x.begin(), x.end(), [&](double other) { return other < one; })));
  }
  return rank;
}

double correlation(const std::vector<double>& x, const std::vector<double>& y) {
  const auto n = static_cast<double>(x.size());
  double mean_x = 0, mean_y = 0, xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    mean_x += x[i] / n;
    mean_y += y[i] / n;
  }
  for (size_t i = 0; i < x.size(); ++i) {
    xy += (x[i] - mean_x) * (y[i] - mean_y);
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    yy += (y[i] - mean_y) * (y[i] - mean_y);
  }
  return xy / std::sqrt(xx * yy);
}

// How well one list of divergences foretells another.
struct Agreement {
  double rank_correlation = 0, median_ratio = 0;  // of foretold to measured
  double spread = 0;  // root mean square of the log of that ratio, less its mean
};

Agreement agreement(const std::map<WeightId, double>& foretold,
                    const std::map<WeightId, double>& measured, const char* name) {
  std::vector<double> x, y, logs;
  for (const auto& [id, kl] : measured) {
    x.push_back(foretold.at(id));
    y.push_back(kl);
    logs.push_back(std::log(x.back() / y.back()));
    std::printf("%-20s %-14s measured %.3e foretold %.3e ratio %.2f\n", name, to_string(id).c_str(),
                kl, x.back(), x.back() / y.back());
  }
  double mean = 0, square = 0;
  for (const double one : logs) mean += one / static_cast<double>(logs.size());
  for (const double one : logs) square += (one - mean) * (one - mean);
  Agreement result{correlation(ranks(x), ranks(y)), 0,
                   std::sqrt(square / static_cast<double>(logs.size()))};
  std::sort(logs.begin(), logs.end());
  result.median_ratio = std::exp(logs[logs.size() / 2]);
  std::printf("%s: rank correlation %.3f, median ratio %.3f, spread %.3f\n", name,
              result.rank_correlation, result.median_ratio, result.spread);
  return result;
}

// The numbers that this prints are those of docs/allocation.md.
TEST_F(SlowGradients, ForetellTheDivergenceOfSmallChanges) {
  const auto kl = measured();
  const Agreement samples = agreement(foretold(16, 1), kl, "16 samples, 1 draw");
  const Agreement tokens = agreement(foretold_by_tokens(), kl, "16 samples by tokens");
  const Agreement few = agreement(foretold(4, 1), kl, "4 samples, 1 draw");
  const Agreement drawn = agreement(foretold(4, 4), kl, "4 samples, 4 draws");
  EXPECT_GT(samples.rank_correlation, 0.97);
  EXPECT_NEAR(samples.median_ratio, 1, 0.1);
  EXPECT_LT(samples.spread, 0.15);
  EXPECT_LT(samples.spread, tokens.spread);
  EXPECT_GT(few.rank_correlation, 0.9);
  EXPECT_LT(drawn.spread, few.spread);
  const Agreement grams = agreement(foretold_by_grams(), kl, "grams of noise");
  EXPECT_LT(grams.spread, 0.15);
}

TEST_F(SlowGradients, GramsForetellTheDivergenceThatFeedbackLeaves) {
  feed_errors_back();
  const auto kl = measured();
  const Agreement squares = agreement(foretold(16, 1), kl, "squares, fed back");
  const Agreement grams = agreement(foretold_by_grams(), kl, "grams, fed back");
  EXPECT_GT(grams.rank_correlation, 0.97);
  EXPECT_NEAR(grams.median_ratio, 1, 0.1);
  EXPECT_LT(grams.spread, 0.15);
  EXPECT_GT(squares.median_ratio, 1.5);
}

}  // namespace
}  // namespace quern
