// SPDX-License-Identifier: Apache-2.0
// Gradients of a model's output with respect to its matrices on calibration samples, and the
// squares of them that foretell what small changes of weights cost.
//
// For small E = W_hat - W the divergence KL(model || changed model), summed over the positions t of
// a sample, is 1/2 sum_t vec(E)^T F_t vec(E), with F_t = E[g g^T] over labels y_t that the model's
// own softmax at t draws, g = d(-log p(y_t)) / dW (the Fisher matrix, here equal to Gauss-Newton).
// Labels of different positions are drawn independently and E[g] = 0, so the gradient G of the sum
// of all losses has E[G G^T] = sum_t F_t: one draw for all positions and one backward pass give an
// unbiased estimate of the whole. The labels of the text itself do not (the empirical Fisher: its
// mean is not zero, and it says how to fit the text, not how far the output moves). Principal
// components of the logits (CVXQ, arXiv 2409.02026) take a pass each, and measure distance between
// hidden states where this measures divergence between distributions.
//
// For errors E that are independent of each other only the diagonal of F counts:
//   KL summed over positions = 1/2 sum_rc E[G_rc^2] E_rc^2
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "base/status.h"
#include "calib/corpus.h"
#include "model/backward.h"
#include "model/fused_source.h"

namespace quern {

struct GradientOptions {
  enum class Labels : uint8_t { kDrawn, kText };  // of the text: of a last position there is none
  Labels labels = Labels::kDrawn;
  int n_draws = 1;  // of labels for all positions of a sample; each is a backward pass
  uint64_t seed = 0;
  // Asked between samples with the share done; false cancels.
  std::function<bool(double)> proceed = [](double) { return true; };
};

// Is shown the gradients of one sample and draw at a time, the loss summed over its positions:
// layers from the last to the first, all samples and draws of one before the next layer. The head,
// of which each position's loss has its own row, is shown a few positions at a time.
class GradientVisitor : public GradientTap {
 public:
  // dy [ids.size(), d_model]: dL/d(row ids[i] of the embedding, as token i reads it). What a tied
  // matrix does as the head is shown as the head's.
  virtual void embedding(std::span<const Token> /*ids*/, MatrixView<const float> /*dy*/) {}
  // Everything of a layer has been shown; n_layers: of the head, -1: of the embedding.
  virtual Status end_layer(int /*layer*/) { return {}; }
};

// The weights of a layer, of an original or of a fused model (ModelFiles, FusedSource).
using LoadLayer = std::function<Result<LayerWeights>(int layer)>;

// Each layer is loaded twice. Of every token the streams between all layers are kept:
// 4 (n_layers + 1 + n_draws) d_model bytes.
Status visit_gradients(const ModelDesc& model, const EndWeights& ends, const LoadLayer& load,
                       const Corpus& corpus, const GradientOptions& options,
                       GradientVisitor& visitor);

// The same of an original in a basis.
Status visit_gradients(const FusedSource& source, const Corpus& corpus,
                       const GradientOptions& options, GradientVisitor& visitor);

// Fails where a model has no gradients, saying why; loads every layer.
Status check_differentiable(const ModelFiles& files);

// The samples of a corpus that are worth their time: 16384 tokens, fewer where the streams of so
// many would take more than 4 GiB.
Corpus gradient_part(const ModelDesc& model, const Corpus& corpus);

// sum [n_out, n_in] += G_rc^2 of the gradient G = dy^T x that GradientTap::linear is shown. What is
// squared is the whole sample: one label depends on a change through all tokens before it, so
// squares of tokens by themselves, sum_t dy_tr^2 x_tc^2, miss their products. On the bundled model
// they foretell half of what `v` costs (SlowGradients, docs/allocation.md).
void add_squares(MatrixView<const float> x, MatrixView<const float> dy, MatrixView<float> sum);

// Sums of these along rows and columns, without a matrix [n_out, n_in] in memory.
struct GradientMargins {
  std::vector<double> rows, columns;  // [n_out], [n_in]; empty: nothing was added
  void add(MatrixView<const float> x, MatrixView<const float> dy);
};

// G^T G and G G^T, of which margins are the diagonals: the Hessians of inputs and of outputs that
// solvers take (YAQA, arXiv 2505.22988, sketch B). They also hold for errors that hang together, as
// feedback leaves them. Summed over samples and draws, with n their tokens,
//   KL per token of E = 1/2 tr(output E input E^T) / (tr(input) n)
struct GradientGrams {
  Matrix<double> input, output;  // [n_in, n_in], [n_out, n_out]; empty: nothing was added
  void add(MatrixView<const float> x, MatrixView<const float> dy);
};

// Hands on the squares of every matrix, summed over samples and divided by the tokens and draws,
// when its layer is done: then the KL per token of a change E is 1/2 sum_rc squares_rc E_rc^2.
class SquaredGradients final : public GradientVisitor {
 public:
  using Done = std::function<Status(const WeightId& id, const Matrix<float>& squares)>;
  SquaredGradients(const Corpus& corpus, const GradientOptions& options, Done done);

  void linear(const WeightId& id, MatrixView<const float> x, MatrixView<const float> dy) override;
  Status end_layer(int layer) override;

 private:
  double n_;  // tokens times draws
  Done done_;
  std::map<WeightId, Matrix<float>> sums_;  // of one layer
};

}  // namespace quern
