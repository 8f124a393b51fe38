// SPDX-License-Identifier: Apache-2.0
// What every layer of a compressed model costs alone: the divergence of the original with this one
// layer, and nothing else, from the compressed model. The original is taken in the basis of the
// compression, where it is the same function but for rounding. A sliced stream is another function,
// whose directions no file keeps: its layers cannot be measured so.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "base/status.h"
#include "calib/corpus.h"
#include "model/model.h"

namespace quern {

struct SwappedLayers {
  std::vector<double> layers;  // KL(original || swapped) in nats per token of the corpus
  std::optional<double> ends;  // of embedding and head together; nothing where neither is coded
};

// `compressed` was opened, and made of this original without slices. Its inputs are rounded as in
// any run, keys and values are not. `proceed` is asked between samples with the share done; false
// cancels. Memory: a row of d_model floats for each token and layer, and one layer of the original.
Result<SwappedLayers> swap_layers(const ModelFiles& original, const Model& compressed,
                                  const Corpus& corpus, const std::function<bool(double)>& proceed);

}  // namespace quern
