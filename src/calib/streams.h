// SPDX-License-Identifier: Apache-2.0
// Calibration activations between two layers, in two streams: what reaches the layer in the
// original model and what reaches it behind the layers already coded. Both are in the basis of the
// compression, so they may be compared entry by entry.
#pragma once

#include <functional>

#include "calib/collect.h"
#include "calib/corpus.h"
#include "model/model.h"
#include "model/rope.h"

namespace quern {

// Runs decoder layers on all samples of a corpus, rows [n_tokens, d_model] one sample after
// another.
class SampleRuns {
 public:
  // Both must outlive this.
  SampleRuns(const ModelDesc& model, const Corpus& corpus) : model_(model), corpus_(corpus) {}

  Matrix<float> embed(const EndWeights& ends) const;
  // `proceed` is asked between samples; false stops and returns false.
  using Proceed = std::function<bool()>;
  // Moves the rows through a layer; the tap may be null.
  bool advance(int layer, const LayerWeights& weights, Matrix<float>& rows, const Proceed& proceed,
               LayerTap* tap = nullptr) const;
  // Shows the tap what the layer's weights read of the rows.
  bool observe(int layer, const LayerWeights& weights, const Matrix<float>& rows, LayerTap& tap,
               const Proceed& proceed) const;
  // One sample, in place, through a layer; the tap may be null.
  void run_sample(int layer, const LayerWeights& weights, MatrixView<float> h, LayerTap* tap) const;

 private:
  const ModelDesc& model_;
  const Corpus& corpus_;
  mutable RopeTables rope_;  // of the samples, which mostly have one length
};

class Streams {
 public:
  // Embeds all samples. `source` and `coded` differ when the embedding is coded.
  Streams(const ModelDesc& model, const Corpus& corpus, const EndWeights& source,
          const EndWeights& coded);

  // Shows the tap what the layer's weights read in the coded stream; no stream moves on.
  // `proceed` is asked between samples; false stops and returns false.
  bool observe(int layer, const LayerWeights& weights, LayerTap& tap,
               const std::function<bool()>& proceed) const;
  // The same of the source stream.
  bool observe_source(int layer, const LayerWeights& weights, LayerTap& tap,
                      const std::function<bool()>& proceed) const;
  // Shows the rows [n, d_model] that the layer makes of the source stream; no stream moves on.
  bool observe_output(int layer, const LayerWeights& weights,
                      const std::function<void(MatrixView<const float>)>& visit,
                      const std::function<bool()>& proceed) const;
  // As observe; before each sample the tap is shown, by GramTap::expect, what weights of `role`
  // read in the source stream under the weights `source`.
  bool observe_drift(int layer, const LayerWeights& source, const LayerWeights& weights, Role role,
                     GramTap& tap, const std::function<bool()>& proceed) const;
  // Moves both streams through a layer.
  bool advance(int layer, const LayerWeights& source, const LayerWeights& coded,
               const std::function<bool()>& proceed);

  // |X_coded - X_source|^2 / |X_source|^2 of the layer's output so far.
  double relative_error() const;
  // The coded stream as the head reads it.
  Matrix<float> final_hidden(const EndWeights& ends) const;

  static size_t n_bytes(const ModelDesc& model, int64_t n_tokens) {
    return static_cast<size_t>(2 * n_tokens * model.d_model) * sizeof(float);
  }

 private:
  const ModelDesc& model_;
  const Corpus& corpus_;
  SampleRuns runs_;
  Matrix<float> source_, coded_;  // [n_tokens, d_model]
};

}  // namespace quern
