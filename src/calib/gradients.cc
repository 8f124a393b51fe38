// SPDX-License-Identifier: Apache-2.0
#include "calib/gradients.h"

#include <algorithm>

#include "calib/streams.h"
#include "eval/divergence.h"
#include "kernels/kernels.h"
#include "linalg/cholesky.h"
#include "model/rope.h"
#include "model/row_passes.h"
#include "model/sampler.h"

namespace quern {
namespace {

constexpr uint64_t kLabelStream = 0x40000;  // labels of draw d of sample s: + s * n_draws + d

class Pass {
 public:
  Pass(const ModelDesc& model, const EndWeights& ends, const LoadLayer& load, const Corpus& corpus,
       const GradientOptions& options, GradientVisitor& visitor)
      : model_(model),
        ends_(ends),
        load_(load),
        corpus_(corpus),
        options_(options),
        visitor_(visitor),
        gradients_(static_cast<size_t>(options.n_draws)) {}

  Status run() {
    QUERN_TRY(check_differentiable(ends_));
    for (const auto& sample : corpus_.samples) {
      QUERN_TRY(check_ids(model_, sample));
      QUERN_TRY(check_context(model_, static_cast<int64_t>(sample.size()), {}));
    }
    for (Matrix<float>& d : gradients_) d = Matrix<float>(corpus_.n_tokens(), model_.d_model);
    QUERN_TRY(forward());
    QUERN_TRY(head());
    for (int layer = n_layers() - 1; layer >= 0; --layer) QUERN_TRY(backward(layer));
    return embedding();
  }

 private:
  int n_layers() const { return static_cast<int>(model_.layers.size()); }

  // body(sample, its first row among those of all, how many) for each sample.
  template <class Body>
  Status for_samples(const Body& body) {
    int64_t row = 0;
    for (size_t s = 0; s < corpus_.samples.size(); ++s) {
      const double all = static_cast<double>(corpus_.samples.size()) * (2 * n_layers() + 2);
      if (!options_.proceed(static_cast<double>(n_done_++) / all)) {
        return cancelled();
      }
      const auto n = static_cast<int64_t>(corpus_.samples[s].size());
      body(s, row, n);
      row += n;
    }
    return {};
  }

  // The stream before every layer and behind the last.
  Status forward() {
    const SampleRuns runs(model_, corpus_);
    streams_.push_back(runs.embed(ends_));
    for (int layer = 0; layer < n_layers(); ++layer) {
      QUERN_ASSIGN(const LayerWeights weights, load_(layer));
      QUERN_TRY(check_differentiable(model_, layer, weights));
      streams_.push_back(streams_.back());
      QUERN_TRY(for_samples([&](size_t /*sample*/, int64_t row, int64_t n) {
        runs.run_sample(layer, weights, streams_.back().view().row_range(row, n), nullptr);
      }));
    }
    return {};
  }

  Status head() {
    Matrix<float> hidden = streams_.back();
    finish_hidden(model_, ends_, hidden.view());
    QUERN_TRY(for_samples([&](size_t s, int64_t row, int64_t n) {
      for (size_t draw = 0; draw < gradients_.size(); ++draw) {
        Random random(options_.seed, kLabelStream + s * gradients_.size() + draw);
        const MatrixView<float> d = gradients_[draw].view().row_range(row, n);
        const int64_t chunk = logit_rows(model_.n_vocab);
        for (int64_t first = 0; first < n; first += chunk) {
          const int64_t count = std::min(chunk, n - first);
          const MatrixView<const float> read = hidden.view().row_range(row + first, count);
          const Matrix<float> d_logits = loss_backward(s, first, read, random);
          visitor_.linear({Role::kLmHead}, read, d_logits.view());
          linear_backward(ends_.head, d_logits.view(), d.row_range(first, count));
        }
        finish_backward(model_, ends_, streams_.back().view().row_range(row, n), d);
      }
    }));
    streams_.pop_back();
    return visitor_.end_layer(n_layers());
  }

  // dL/d(logits before their cap) of positions from `first` on: softmax less one at the label.
  Matrix<float> loss_backward(size_t sample, int64_t first, MatrixView<const float> hidden,
                              Random& random) const {
    Matrix<float> d(hidden.rows, model_.n_vocab);
    head_logits(model_, ends_, hidden, d.view());
    std::vector<Token> labels(static_cast<size_t>(hidden.rows));
    for (int64_t i = 0; i < hidden.rows; ++i) {
      labels[static_cast<size_t>(i)] =
          label(sample, first + i, {d.row(i), static_cast<size_t>(d.cols())}, random);
    }
    const auto cap = static_cast<float>(model_.logit_soft_cap);
    for_rows(d.view(), [&](int64_t i) {
      const Token label = labels[static_cast<size_t>(i)];
      float* row = d.row(i);
      const std::vector<float> logits(row, row + d.cols());
      kernels().softmax(1, d.cols(), row, nullptr);
      if (label >= 0) row[label] -= 1;
      for (int64_t j = 0; j < d.cols(); ++j) {
        const float capped = cap == 0 ? 0 : logits[static_cast<size_t>(j)] / cap;
        row[j] = label < 0 ? 0 : row[j] * (1 - capped * capped);
      }
    });
    return d;
  }

  // -1: none.
  Token label(size_t sample, int64_t position, std::span<const float> logits,
              Random& random) const {
    if (options_.labels == GradientOptions::Labels::kDrawn) return sample_plain(logits, random);
    const std::vector<Token>& ids = corpus_.samples[sample];
    const auto next = static_cast<size_t>(position + 1);
    return next < ids.size() ? ids[next] : -1;
  }

  Status backward(int layer) {
    QUERN_ASSIGN(const LayerWeights weights, load_(layer));
    QUERN_TRY(for_samples([&](size_t /*sample*/, int64_t row, int64_t n) {
      const LayerBackward adjoint({&model_, &rope_, layer}, weights,
                                  streams_.back().view().row_range(row, n));
      for (Matrix<float>& d : gradients_) adjoint.run(d.view().row_range(row, n), visitor_);
    }));
    streams_.pop_back();
    return visitor_.end_layer(layer);
  }

  Status embedding() {
    QUERN_TRY(for_samples([&](size_t s, int64_t row, int64_t n) {
      for (Matrix<float>& all : gradients_) {
        const MatrixView<float> d = all.view().row_range(row, n);
        embed_backward(model_, ends_, d);
        visitor_.embedding(corpus_.samples[s], d);
      }
    }));
    return visitor_.end_layer(-1);
  }

  const ModelDesc& model_;
  const EndWeights& ends_;
  const LoadLayer& load_;
  const Corpus& corpus_;
  const GradientOptions& options_;
  GradientVisitor& visitor_;
  RopeTables rope_;
  std::vector<Matrix<float>> streams_;    // [n_tokens, d_model] before each layer still to come
  std::vector<Matrix<float>> gradients_;  // [n_tokens, d_model] of each draw
  int64_t n_done_ = 0;                    // samples, once for each layer and pass
};

// b b^T a, [n, n_a]. With G = dy^T x it makes G G^T = dy^T (x x^T dy) and G^T G = x^T (dy dy^T x)
// without G.
Matrix<float> across_tokens(MatrixView<const float> a, MatrixView<const float> b) {
  Matrix<float> products(b.rows, b.rows), result(a.rows, a.cols);
  for_rows(products.view(), [&](int64_t i) {
    kernels().dot_tile(b.row(i), b.stride, 1, b.data, b.stride, b.rows, b.cols, products.row(i),
                       b.rows);
  });
  add_matmul(products.view(), a, result.view());
  return result;
}

// sum[j] += (a^T b b^T a)_jj
void add_diagonal(MatrixView<const float> a, MatrixView<const float> b, std::vector<double>& sum) {
  const Matrix<float> across = across_tokens(a, b);
  sum.resize(static_cast<size_t>(a.cols));
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) {
      sum[static_cast<size_t>(j)] += static_cast<double>(a(i, j)) * across(i, j);
    }
  }
}

// sum += a^T b b^T a
void add_gram(MatrixView<const float> a, MatrixView<const float> b, Matrix<double>& sum) {
  if (sum.empty()) sum = Matrix<double>(a.cols, a.cols);
  accumulate_product(a, across_tokens(a, b).view(), sum.view());
}

}  // namespace

Status visit_gradients(const ModelDesc& model, const EndWeights& ends, const LoadLayer& load,
                       const Corpus& corpus, const GradientOptions& options,
                       GradientVisitor& visitor) {
  if (options.n_draws < 1) return usage_error("gradients: {} draws of labels", options.n_draws);
  return Pass(model, ends, load, corpus, options, visitor).run();
}

Status visit_gradients(const FusedSource& source, const Corpus& corpus,
                       const GradientOptions& options, GradientVisitor& visitor) {
  QUERN_ASSIGN(const EndWeights ends, source.ends());
  const auto load = [&](int layer) { return source.layer(layer); };
  return visit_gradients(source.desc(), ends, load, corpus, options, visitor);
}

Status check_differentiable(const ModelFiles& files) {
  QUERN_ASSIGN(const EndWeights ends, files.ends());
  QUERN_TRY(check_differentiable(ends));
  for (int layer = 0; layer < static_cast<int>(files.desc().layers.size()); ++layer) {
    QUERN_ASSIGN(const LayerWeights weights, files.layer(layer));
    QUERN_TRY(check_differentiable(files.desc(), layer, weights));
  }
  return {};
}

Corpus gradient_part(const ModelDesc& model, const Corpus& corpus) {
  constexpr int64_t kTokens = 16384, kFewest = 256;
  constexpr size_t kBudget = size_t{4} << 30;
  const size_t row = (model.layers.size() + 2) * static_cast<size_t>(model.d_model) * sizeof(float);
  return first_tokens(corpus, std::clamp(static_cast<int64_t>(kBudget / row), kFewest, kTokens));
}

void add_squares(MatrixView<const float> x, MatrixView<const float> dy, MatrixView<float> sum) {
  Matrix<double> gradient(sum.rows, sum.cols);
  accumulate_product(dy, x, gradient.view());
  for_rows(sum, [&](int64_t i) {
    for (int64_t j = 0; j < sum.cols; ++j) {
      sum(i, j) += static_cast<float>(gradient(i, j) * gradient(i, j));
    }
  });
}

void GradientMargins::add(MatrixView<const float> x, MatrixView<const float> dy) {
  add_diagonal(dy, x, rows);
  add_diagonal(x, dy, columns);
}

void GradientGrams::add(MatrixView<const float> x, MatrixView<const float> dy) {
  add_gram(x, dy, input);
  add_gram(dy, x, output);
}

SquaredGradients::SquaredGradients(const Corpus& corpus, const GradientOptions& options, Done done)
    : n_(static_cast<double>(corpus.n_tokens() * options.n_draws)), done_(std::move(done)) {}

void SquaredGradients::linear(const WeightId& id, MatrixView<const float> x,
                              MatrixView<const float> dy) {
  Matrix<float>& sum = sums_[id];
  if (sum.empty()) sum = Matrix<float>(dy.cols, x.cols);
  add_squares(x, dy, sum.view());
}

Status SquaredGradients::end_layer(int /*layer*/) {
  for (auto& [id, sum] : sums_) {
    kernels().scale(static_cast<float>(1 / n_), sum.rows() * sum.cols(), sum.data());
    QUERN_TRY(done_(id, sum));
  }
  sums_.clear();
  return {};
}

}  // namespace quern
