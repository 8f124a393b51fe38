// SPDX-License-Identifier: Apache-2.0
// The one folding pass: turns a checkpoint's weights into those of the same function in another
// basis, and says what is left to be done online. All arithmetic in double; the caller rounds once.
//
// What folds: of what q, k, v and gate, up read, the diagonals at the front of the chain, into the
// gain (and bias) of the norm before them; of the input of down, the permutations at the front into
// gate and up, and in a gated MLP the diagonals there into up; of the input of o, the diagonals at
// the front that are equal for all heads of a KV group, into v. The rest of a chain runs online.
//
// A change of the stream itself first moves the gains and biases of the norms that read it into the
// weights behind them. LayerNorms become RMSNorms: of a stream without its mean both are the same,
// and the mean is taken from the embedding and from all that is written.
#pragma once

#include <functional>

#include "model/archs/arch.h"
#include "model/layer_desc.h"
#include "model/roles.h"
#include "tensor/matrix.h"
#include "transforms/basis.h"

namespace quern {

// What a layer applies while it runs.
struct OnlineOperators {
  Chain attn_in, heads, qk, mlp_in, ffn;
};
OnlineOperators online_operators(const BasisChange& basis, const ModelDesc& model, int layer);

// What runs online for one token: operations, and bytes of operators and matrices that are read. Of
// what is fitted later only matrices past attention and MLP are counted. `model`: the original's.
struct OnlineCost {
  int64_t flops = 0, bytes = 0;
};
OnlineCost online_cost(const BasisChange& basis, const ModelDesc& model);

// The description of a model in a basis: norms, biases, ties and widths may change.
ModelDesc in_basis(const ModelDesc& model, const BasisChange& basis);

// True if this basis changes a weight, or its bias, or adds it to the model.
bool is_changed(const BasisChange& basis, const WeightId& id);

// The weights of a model in a basis. T = double; float exists for tests of precision.
template <class T>
class Fold {
 public:
  // A weight or bias of the original model that exists there; vectors are one row.
  using Load = std::function<Result<Matrix<T>>(const WeightId& id, Part part)>;

  // `model`, the original's, and `basis` must outlive this.
  Fold(const ModelDesc& model, const BasisChange& basis, Load load)
      : model_(model), basis_(basis), load_(std::move(load)) {}

  // A weight or bias as a file of the changed model holds it (a norm's gain less its offset).
  Result<Matrix<T>> part(const WeightId& id, Part part) const;

 private:
  Result<Matrix<T>> norm(const WeightId& id, Part part) const;
  Result<Matrix<T>> embedding(const WeightId& id) const;
  Result<Matrix<T>> head(Part part) const;
  Matrix<T> skip(const WeightId& id) const;
  Result<Matrix<T>> weight(const WeightId& id) const;
  Result<Matrix<T>> bias(const WeightId& id) const;
  // W <- W diag(gain of the norm before it).
  Status scale_by_gain(const WeightId& norm, Matrix<T>& w) const;
  // Adds W times the bias of the norm before it.
  Status add_norm_bias(const WeightId& norm, const WeightId& id, Matrix<T>& bias) const;
  void read_changed(const WeightId& id, Matrix<T>& w) const;
  void write_changed(const WeightId& id, Matrix<T>& w) const;

  const ModelDesc& model_;
  const BasisChange& basis_;
  Load load_;
};
extern template class Fold<float>;
extern template class Fold<double>;

// Why a layer cannot have its stream in another basis; empty if it can.
std::string stream_obstacle(const LayerDesc& layer, const StreamForm& form);
// Whether the form that a basis gives a model suits it, by the original's description.
Status check_form(const BasisChange& basis, const ModelDesc& original);
// Whether every operator fits the sizes of its site, by the changed model's description.
Status check_basis(const BasisChange& basis, const ModelDesc& model);

}  // namespace quern
