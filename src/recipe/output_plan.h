// SPDX-License-Identifier: Apache-2.0
// What becomes of every weight, decided before any is read: the tensors of the output, its bytes,
// and who codes what.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "model/model_files.h"
#include "recipe/recipe.h"

namespace quern {

enum class Fate : uint8_t {
  kCopy,   // the stored tensor goes over as it is
  kDense,  // folded or cut out of a shared tensor, written in the source's float type
  kCoded,
};

struct WeightPlan {
  WeightId id;
  Fate fate = Fate::kCopy;
  const Solver* solver = nullptr;           // kCoded
  std::shared_ptr<const ActQuantizer> act;  // of the inputs, kCoded; null: the reader's choice
  std::string name, bias_name;              // of the weight in the output, and of its bias
  int64_t n_out = 0, n_in = 0;
  DType dense_dtype = DType::kBF16;  // kDense, and the bias
};

class OutputPlan {
 public:
  // Checks every matrix against its codec.
  static Result<OutputPlan> make(const ModelFiles& source, const Recipe& recipe,
                                 const BasisChange& basis);

  const std::vector<WeightPlan>& weights() const { return weights_; }
  const WeightPlan& at(const WeightId& id) const;
  // Tensors that the work on a layer (-1: outside the layers) produces.
  std::vector<const WeightPlan*> of_layer(int layer) const;
  // Source tensors copied unchanged.
  const std::set<std::string>& copied() const { return copied_; }
  int64_t n_coded() const;
  // The most memory that coding needs at once, beyond mapped files and calibration streams: one
  // layer and its codes, its widest matrix while it is folded and solved, one Hessian.
  size_t peak_bytes(bool has_streams, bool is_folded) const;

 private:
  std::vector<WeightPlan> weights_;
  std::map<WeightId, size_t> index_;
  std::set<std::string> copied_;
};

}  // namespace quern
