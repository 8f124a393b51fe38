// SPDX-License-Identifier: Apache-2.0
// What changes of single parts do to a model's output: copies of it that differ in one part each,
// moved beside it through its layers. A copy costs the layers behind its part and the head, every
// layer is loaded once, and of every token each copy holds one row of d_model floats.
#pragma once

#include <vector>

#include "base/status.h"
#include "calib/corpus.h"
#include "calib/streams.h"
#include "model/model_files.h"

namespace quern {

class Variants {
 public:
  using Proceed = SampleRuns::Proceed;

  // Model and corpus must outlive this.
  Variants(const ModelDesc& model, const Corpus& corpus, EndWeights ends);

  // A copy with other ends: added before the first layer, or behind the last if only the head is
  // another.
  void add_ends(EndWeights ends);
  // A copy whose layer `layer`, the next, is another. False if `proceed`, which is asked between
  // samples, said no.
  bool add_layer(int layer, const LayerWeights& weights, const Proceed& proceed);
  // The model and its copies through its next layer; those whose layer this is have passed it.
  bool advance(int layer, const LayerWeights& weights, const Proceed& proceed);

  size_t size() const { return copies_.size(); }
  // Behind the last layer, once: KL(model || copy) in nats per token of the corpus, in the order in
  // which copies were added. An equal copy has 0. May be no finite number where an output is none.
  Result<std::vector<double>> divergences(const Proceed& proceed);

 private:
  struct Copy {
    EndWeights ends;
    Matrix<float> rows;  // [n_tokens, d_model], what layer `next` reads
    int next = 0;
  };

  const ModelDesc& model_;
  SampleRuns runs_;
  Copy original_;
  std::vector<Copy> copies_;
};

}  // namespace quern
