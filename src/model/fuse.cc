// SPDX-License-Identifier: Apache-2.0
#include "model/fuse.h"

#include <algorithm>
#include <vector>

#include "base/parallel.h"

namespace quern {
namespace {

// The sites a weight reads, in the order in which its input meets them.
std::vector<Site> sites_read(Role role) {
  switch (role) {
    case Role::kQ:
    case Role::kK:
    case Role::kV:
      return {Site::kResidual, Site::kAttnIn};
    case Role::kGate:
    case Role::kUp:
    case Role::kRouter:
    case Role::kSharedGate:
    case Role::kSharedUp:
    case Role::kSharedRouter:
      return {Site::kResidual, Site::kMlpIn};
    case Role::kO:
      return {Site::kValue, Site::kHeads};
    case Role::kDown:
      return {Site::kFfn};
    default:
      return {};
  }
}

// The sites a weight writes, of which kHeads and kFfn only what folds.
std::vector<Site> sites_written(Role role) {
  switch (role) {
    case Role::kAttnNorm:
      return {Site::kAttnIn};
    case Role::kMlpNorm:
      return {Site::kMlpIn};
    case Role::kV:
      return {Site::kValue, Site::kHeads};
    case Role::kGate:
    case Role::kUp:
      return {Site::kFfn};
    case Role::kO:
    case Role::kDown:
    case Role::kSharedDown:
      return {Site::kResidual};
    default:
      return {};
  }
}

// The norm whose gain a role's columns take up; kEmbed if none.
Role norm_before(Role role) {
  const std::vector<Site> sites = sites_read(role);
  if (sites.size() < 2 || sites[0] != Site::kResidual) return Role::kEmbed;
  return sites[1] == Site::kAttnIn ? Role::kAttnNorm : Role::kMlpNorm;
}

const NormDesc& norm_desc(const ModelDesc& model, const WeightId& id) {
  const LayerDesc& layer = model.layers[static_cast<size_t>(id.layer)];
  return id.role == Role::kAttnNorm ? layer.attn_norm : layer.mlp_norm;
}

// Whether a diagonal over all heads scales those that share a KV head alike.
bool is_equal_in_groups(const Operator& op, const AttentionDesc& attention) {
  const int64_t width = attention.n_heads * attention.d_head;
  if (width % op.size() != 0) return false;
  std::vector<double> scale(static_cast<size_t>(width), 1.0);
  op.apply(scale.data(), width);
  const int64_t d = attention.d_head, per_kv = attention.n_heads / attention.n_kv_heads;
  for (int64_t head = 0; head < attention.n_heads; ++head) {
    const int64_t leader = head / per_kv * per_kv;
    if (!std::equal(scale.begin() + head * d, scale.begin() + (head + 1) * d,
                    scale.begin() + leader * d)) {
      return false;
    }
  }
  return true;
}

bool folds(const Operator& op, Site site, const LayerDesc& layer) {
  const bool is_diagonal = op.kind() == OperatorKind::kDiagonal;
  switch (site) {
    case Site::kAttnIn:
      return is_diagonal && layer.attn_norm.kind != NormKind::kNone;
    case Site::kMlpIn:
      return is_diagonal && layer.mlp_norm.kind != NormKind::kNone;
    case Site::kFfn:
      return op.kind() == OperatorKind::kPermutation || (is_diagonal && layer.mlp.gated);
    case Site::kHeads:
      return is_diagonal && is_equal_in_groups(op, layer.attention);
    default:
      return false;
  }
}

// How many operators at the front of a chain fold into the writer of its input.
size_t n_folded(const BasisChange& basis, const ModelDesc& model, Site site, int layer) {
  const auto& operators = basis.at(site, layer).operators();
  const LayerDesc& desc = model.layers[static_cast<size_t>(layer)];
  size_t n = 0;
  while (n < operators.size() && folds(*operators[n], site, desc)) ++n;
  return n;
}

constexpr int64_t kRowGrain = 16;
constexpr int64_t kColGrain = 16;

// body(column) on every column of w, as consecutive values.
template <class T, class Body>
void for_columns(MatrixView<T> w, const Body& body) {
  parallel_for(w.cols, kColGrain, [&](int64_t begin, int64_t end) {
    const int64_t width = end - begin;
    std::vector<T> columns(static_cast<size_t>(width * w.rows));  // [width, rows]
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        columns[static_cast<size_t>(j * w.rows + i)] = w(i, begin + j);
      }
    }
    for (int64_t j = 0; j < width; ++j) body(columns.data() + j * w.rows);
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        w(i, begin + j) = columns[static_cast<size_t>(j * w.rows + i)];
      }
    }
  });
}

Status check_chain(const Chain& chain, Site site, int64_t size) {
  if (chain.operators().size() > kMaxChain) {
    return error("basis: site '{}' has {} operators, at most {}", site_name(site),
                 chain.operators().size(), kMaxChain);
  }
  for (const auto& op : chain.operators()) {
    if (size % op->size() != 0) {
      return error("basis: an operator of size {} at site {} does not divide {}", op->size(),
                   site_name(site), size);
    }
    if (site == Site::kResidual && !op->is_orthogonal()) {
      return error("basis: an operator at site residual is not orthogonal");
    }
  }
  return {};
}

}  // namespace

OnlineOperators online_operators(const BasisChange& basis, const ModelDesc& model, int layer) {
  const auto online = [&](Site site) {
    return basis.at(site, layer).after(n_folded(basis, model, site, layer));
  };
  return {online(Site::kAttnIn), online(Site::kHeads), online(Site::kQk), online(Site::kMlpIn),
          online(Site::kFfn)};
}

bool is_changed(const BasisChange& basis, const WeightId& id) {
  if (is_gain_folded(basis, id.role)) return true;
  const std::vector<Site> in = sites_read(id.role), out = sites_written(id.role);
  const auto reads = [&](Site site) {
    return !basis.at(site, id.layer).empty() || basis.is_expected(site);
  };
  const auto writes = [&](Site site) {
    if (site == Site::kResidual || site == Site::kValue) return reads(site);
    const auto& operators = basis.at(site, id.layer).operators();
    const OperatorKind first = operators.empty() ? OperatorKind::kOther : operators[0]->kind();
    const bool may_fold = first == OperatorKind::kDiagonal || first == OperatorKind::kPermutation;
    return may_fold || basis.is_expected(site);
  };
  return std::any_of(in.begin(), in.end(), reads) || std::any_of(out.begin(), out.end(), writes);
}

bool is_gain_folded(const BasisChange& basis, Role norm) {
  return (norm == Role::kAttnNorm || norm == Role::kMlpNorm) && !basis.empty(Site::kResidual);
}

template <class T>
Result<Matrix<T>> Fold<T>::part(const WeightId& id, Part part) const {
  if (id.role == Role::kAttnNorm || id.role == Role::kMlpNorm) return norm(id, part);
  QUERN_ASSIGN(Matrix<T> w, load_(id, part));
  if (part == Part::kBias) {
    // A bias is a column of what the weight writes.
    write_changed(id, MatrixView<T>{w.data(), w.cols(), 1, 1});
    return w;
  }
  QUERN_TRY(scale_by_gain(id, w));
  read_changed(id, w.view());
  write_changed(id, w.view());
  return w;
}

template <class T>
Result<Matrix<T>> Fold<T>::norm(const WeightId& id, Part part) const {
  QUERN_ASSIGN(Matrix<T> values, load_(id, part));
  const NormDesc& desc = norm_desc(model_, id);
  const T offset = part == Part::kWeight ? T(desc.gain_offset) : T(0);
  for (int64_t j = 0; j < values.cols(); ++j) values(0, j) += offset;
  if (is_gain_folded(basis_, id.role)) std::fill_n(values.data(), values.cols(), T(1));
  const Site site = id.role == Role::kAttnNorm ? Site::kAttnIn : Site::kMlpIn;
  basis_.at(site, id.layer)
      .first(n_folded(basis_, model_, site, id.layer))
      .apply(values.data(), values.cols());
  for (int64_t j = 0; j < values.cols(); ++j) values(0, j) -= offset;
  return values;
}

template <class T>
Status Fold<T>::scale_by_gain(const WeightId& id, Matrix<T>& w) const {
  const Role norm = norm_before(id.role);
  if (!is_gain_folded(basis_, norm)) return {};
  const WeightId norm_id{norm, id.layer, -1};
  QUERN_ASSIGN(const Matrix<T> gain, load_(norm_id, Part::kWeight));
  const T offset = T(norm_desc(model_, norm_id).gain_offset);
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.cols(); ++j) w(i, j) *= gain(0, j) + offset;
  }
  return {};
}

template <class T>
void Fold<T>::read_changed(const WeightId& id, MatrixView<T> w) const {
  for (const Site site : sites_read(id.role)) {
    const Chain& chain = basis_.at(site, id.layer);
    if (chain.empty()) continue;
    parallel_for(w.rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) chain.apply_inverse_transpose(w.row(i), w.cols);
    });
  }
}

template <class T>
void Fold<T>::write_changed(const WeightId& id, MatrixView<T> w) const {
  for (const Site site : sites_written(id.role)) {
    Chain chain = basis_.at(site, id.layer);
    if (site == Site::kHeads || site == Site::kFfn) {
      chain = chain.first(n_folded(basis_, model_, site, id.layer));
    }
    if (chain.empty()) continue;
    if (site == Site::kHeads) {  // diagonals, whose groups of heads are alike
      const AttentionDesc& a = model_.layers[static_cast<size_t>(id.layer)].attention;
      const int64_t d = a.d_head, per_kv = a.n_heads / a.n_kv_heads;
      std::vector<T> scale(static_cast<size_t>(a.n_heads * d), T(1));
      chain.apply(scale.data(), a.n_heads * d);
      for (int64_t i = 0; i < w.rows; ++i) {
        const T s = scale[static_cast<size_t>(i / d * per_kv * d + i % d)];
        for (int64_t j = 0; j < w.cols; ++j) w(i, j) *= s;
      }
      continue;
    }
    for_columns(w, [&](T* column) {
      for (const OperatorPtr& op : chain.operators()) {
        // What multiplies up's half of a gated product must leave the other half alone.
        if (id.role == Role::kGate && op->kind() == OperatorKind::kDiagonal) continue;
        op->apply(column, w.rows);
      }
    });
  }
}

template class Fold<float>;
template class Fold<double>;

Status check_basis(const BasisChange& basis, const ModelDesc& model) {
  const auto n_layers = static_cast<int>(model.layers.size());
  if (basis.last_layer() >= n_layers) {
    return error("basis: an operator for layer {} of {}", basis.last_layer(), n_layers);
  }
  for (int i = 0; i < n_layers; ++i) {
    const LayerDesc& layer = model.layers[static_cast<size_t>(i)];
    const int64_t d_head = layer.attention.d_head;
    const std::pair<Site, int64_t> sizes[] = {{Site::kResidual, model.d_model},
                                              {Site::kAttnIn, model.d_model},
                                              {Site::kMlpIn, model.d_model},
                                              {Site::kValue, d_head},
                                              {Site::kQk, d_head},
                                              {Site::kHeads, layer.attention.n_heads * d_head},
                                              {Site::kFfn, layer.mlp.d_ffn}};
    for (const auto& [site, size] : sizes) QUERN_TRY(check_chain(basis.at(site, i), site, size));
  }
  return {};
}

}  // namespace quern
