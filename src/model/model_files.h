// SPDX-License-Identifier: Apache-2.0
// Everything on disk that makes a model: checkpoint, description, and, for a model that quern
// wrote, the codes and the basis they are in. Hands out weights ready to run.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "model/forward.h"
#include "model/packed.h"
#include "model/weights.h"

namespace quern {

struct EndWeights {
  LinearWeight embed;      // [n_vocab, d_model], read by rows
  LinearWeight pos_embed;  // may not exist
  NormWeight final_norm;
  LinearWeight head;  // equal to embed when tied
  Chain residual;  // behind the embedding, or if turned the final norm; its inverse before the norm
  bool is_turned = false;   // embed and head are in the stream's basis, the final norm is not
  bool is_centred = false;  // the mean is taken from what the embedding gives, before `residual`
};

// What a basis leaves to be done at both ends of the model.
void set_online_ends(const BasisChange& basis, EndWeights& ends);

class ModelFiles {
 public:
  // Coded weights meet their inputs as `activations` says.
  static Result<std::unique_ptr<ModelFiles>> open(const std::string& path,
                                                  Activations activations = Activations::kExact);

  const std::string& path() const { return store_->checkpoint().path(); }
  const ModelDesc& desc() const { return store_->model(); }
  const WeightStore& store() const { return *store_; }
  const Packed& packed() const { return store_->packed(); }  // empty for an uncompressed model
  const BasisChange& basis() const { return packed().basis; }

  Activations activations() const { return activations_; }

  // Views of mapped weights where the file's layout allows it; float copies, or a codec's runtime
  // form, elsewhere.
  Result<LayerWeights> layer(int index) const;
  Result<EndWeights> ends() const;
  Result<LinearWeight> linear(const WeightId& id) const;
  Result<NormWeight> norm(const WeightId& id, const NormDesc& desc) const;

  int64_t n_params() const { return store_->original_parameter_count(); }  // of the original model
  int64_t n_stored_params() const { return store_->parameter_count(); }
  // Of the configuration, the table of tensors, and the first 4 KiB of each.
  std::string digest() const;
  uint64_t weight_bytes() const;  // bytes of the weight files, headers included
  // Bits per weight over everything on disk, and over the linear layers of the decoder alone.
  double bpw() const;
  double linear_bpw() const;

 private:
  ModelFiles() = default;
  std::unique_ptr<WeightStore> store_;
  LinearWeight multiplied(LinearWeight dense, const WeightId& id) const;

  Activations activations_ = Activations::kExact;
};

}  // namespace quern
