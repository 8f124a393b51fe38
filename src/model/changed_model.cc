// SPDX-License-Identifier: Apache-2.0
#include "model/changed_model.h"

#include <numeric>

namespace quern {

template <class T>
Result<DenseWeights<T>> changed_weights(const ModelDesc& model, const DenseWeights<T>& weights,
                                        const BasisChange& basis) {
  const Fold<T> fold(model, basis, [&](const WeightId& id, Part part) -> Result<Matrix<T>> {
    return weights.get(id, part);
  });
  DenseWeights<T> changed;
  const ModelDesc desc = in_basis(model, basis);
  for (const WeightId& id : weight_ids(desc)) {
    for (const Part part : {Part::kWeight, Part::kBias}) {
      if (!has_weight(desc, id, part)) continue;
      QUERN_ASSIGN(changed.edit(id, part), fold.part(id, part));
    }
  }
  return changed;
}

template <class T>
ReferenceHooks<T> online_hooks(const ModelDesc& model, const BasisChange& basis) {
  std::vector<OnlineOperators> layers;
  layers.reserve(model.layers.size());
  for (int i = 0; i < static_cast<int>(model.layers.size()); ++i) {
    layers.push_back(online_operators(basis, model, i));
  }
  const auto apply = [layers](Chain OnlineOperators::*site) {
    return [layers, site](int layer, Matrix<T>& x) {
      const Chain& chain = layers[static_cast<size_t>(layer)].*site;
      for (int64_t i = 0; i < x.rows(); ++i) chain.apply(x.row(i), x.cols());
    };
  };
  ReferenceHooks<T> hooks;
  if (basis.form().ends == Ends::kTurned) {
    hooks.before_head = [&basis](Matrix<T>& h) {
      for (int64_t i = 0; i < h.rows(); ++i) {
        basis.at(Site::kResidual).apply(h.row(i), h.cols());
      }
    };
  }
  if (basis.form().ends == Ends::kOnline) {
    hooks.after_embedding = [&basis](Matrix<T>& h) {
      for (int64_t i = 0; i < h.rows(); ++i) {
        if (basis.form().is_centred) {
          const T mean = std::accumulate(h.row(i), h.row(i) + h.cols(), T(0)) / T(h.cols());
          for (int64_t j = 0; j < h.cols(); ++j) h(i, j) -= mean;
        }
        basis.at(Site::kResidual).apply(h.row(i), h.cols());
      }
    };
  }
  if (!basis.form().has_folded_ends()) {
    hooks.before_final_norm = [&basis](Matrix<T>& h) {
      for (int64_t i = 0; i < h.rows(); ++i) {
        basis.at(Site::kResidual).apply_inverse(h.row(i), h.cols());
      }
    };
  }
  hooks.qkv_input = apply(&OnlineOperators::attn_in);
  hooks.mlp_input = apply(&OnlineOperators::mlp_in);
  hooks.q = apply(&OnlineOperators::qk);
  hooks.k = [layers](int layer, Matrix<T>& x) {
    const Chain& chain = layers[static_cast<size_t>(layer)].qk;
    for (int64_t i = 0; i < x.rows(); ++i) chain.apply_inverse_transpose(x.row(i), x.cols());
  };
  hooks.o_input = apply(&OnlineOperators::heads);
  hooks.down_input = [ffn = apply(&OnlineOperators::ffn)](const WeightId& down, Matrix<T>& x) {
    if (down.role == Role::kDown) ffn(down.layer, x);
  };
  return hooks;
}

#define QUERN_INSTANTIATE(T)                                                                 \
  template Result<DenseWeights<T>> changed_weights(const ModelDesc&, const DenseWeights<T>&, \
                                                   const BasisChange&);                      \
  template ReferenceHooks<T> online_hooks(const ModelDesc&, const BasisChange&);
QUERN_INSTANTIATE(float)
QUERN_INSTANTIATE(double)
#undef QUERN_INSTANTIATE

}  // namespace quern
