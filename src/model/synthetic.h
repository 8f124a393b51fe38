// SPDX-License-Identifier: Apache-2.0
// Models of known shapes with random weights: what speed depends on, without a checkpoint.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/model.h"

namespace quern {

std::vector<std::string_view> model_shapes();  // "tinyllama", "llama-7b", ...; tiny first

// The description of a shape, through its architecture's reader of config.json.
Result<ModelDesc> shape_desc(std::string_view name);

struct SyntheticOptions {
  std::string codec = "f16";  // of the layers' matrices: a codec's text, or f32, f16, bf16
  std::string head_codec;     // of embedding and head; empty: `codec`
  uint64_t seed = 0;
  Activations activations = Activations::kExact;
  int64_t n_context = 0;  // at least; 0: as the shape has it
  std::string act;        // of the inputs of coded layers, with scales of each row; empty: none
  BasisChange basis;      // whose online operators run; nothing is folded into random weights
};

// Gaussian weights of variance 1 / n_in, so that activations stay in range; norms are one, biases
// zero. Of each width a few rows are coded by the codec itself and repeated down every matrix of
// that width, each in memory of its own: sizes, layouts and the distribution of the codes are those
// of a real model, and building takes seconds. What the rows of a matrix share is that of the few.
// Row ends that count through a whole matrix (outliers in csr) restart with each repeat, so places
// past the first are not read.
Result<std::unique_ptr<Model>> synthetic_model(std::string_view shape,
                                               const SyntheticOptions& options);

// One such matrix.
Result<LinearWeight> synthetic_linear(const std::string& codec, int64_t n_out, int64_t n_in,
                                      uint64_t seed, Activations activations = Activations::kExact);

}  // namespace quern
