// SPDX-License-Identifier: Apache-2.0
#include "model/fuse.h"

#include <algorithm>
#include <vector>

#include "base/parallel.h"

namespace quern {
namespace {

struct Sites {
  std::vector<Site> in, out;
};

// Which basis a weight reads and which it writes.
Sites sites_of(Role role) {
  switch (role) {
    case Role::kQ:
    case Role::kK:
    case Role::kGate:
    case Role::kUp:
    case Role::kRouter:
    case Role::kSharedGate:
    case Role::kSharedUp:
    case Role::kSharedRouter:
      return {{Site::kResidual}, {}};
    case Role::kV:
      return {{Site::kResidual}, {Site::kValue}};
    case Role::kO:
      return {{Site::kValue, Site::kHeads}, {Site::kResidual}};
    case Role::kDown:
      return {{Site::kFfn}, {Site::kResidual}};
    case Role::kSharedDown:
      return {{}, {Site::kResidual}};
    default:
      return {};
  }
}

bool touches(const BasisChange& basis, const std::vector<Site>& sites) {
  return std::any_of(sites.begin(), sites.end(),
                     [&](Site site) { return !basis.at(site).empty(); });
}

constexpr int64_t kRowGrain = 16;
constexpr int64_t kColGrain = 16;

template <class T>
void apply_to_rows(const Chain& chain, MatrixView<T> w) {
  parallel_for(w.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) chain.apply(w.row(i), w.cols);
  });
}

template <class T>
void apply_to_columns(const Chain& chain, MatrixView<T> w) {
  parallel_for(w.cols, kColGrain, [&](int64_t begin, int64_t end) {
    const int64_t width = end - begin;
    std::vector<T> columns(static_cast<size_t>(width * w.rows));  // [width, rows]
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        columns[static_cast<size_t>(j * w.rows + i)] = w(i, begin + j);
      }
    }
    chain.apply(columns.data(), width * w.rows);
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        w(i, begin + j) = columns[static_cast<size_t>(j * w.rows + i)];
      }
    }
  });
}

Status check_chain(const Chain& chain, Site site, int64_t size) {
  for (const auto& op : chain.operators()) {
    if (size % op->size() != 0) {
      return error("basis: an operator of size {} at site {} does not divide {}", op->size(),
                   site_name(site), size);
    }
  }
  return {};
}

}  // namespace

bool is_changed(const BasisChange& basis, Role role) {
  const Sites sites = sites_of(role);
  return touches(basis, sites.in) || touches(basis, sites.out) || is_gain_folded(basis, role);
}

bool is_gain_folded(const BasisChange& basis, Role norm) {
  return (norm == Role::kAttnNorm || norm == Role::kMlpNorm) && !basis.at(Site::kResidual).empty();
}

Role folded_norm(Role role) {
  switch (role) {
    case Role::kQ:
    case Role::kK:
    case Role::kV:
      return Role::kAttnNorm;
    case Role::kGate:
    case Role::kUp:
    case Role::kRouter:
    case Role::kSharedGate:
    case Role::kSharedUp:
    case Role::kSharedRouter:
      return Role::kMlpNorm;
    default:
      return Role::kEmbed;
  }
}

template <class T>
void fuse_weight(const BasisChange& basis, Role role, const T* gain, MatrixView<T> w) {
  if (gain != nullptr) {
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) w(i, j) *= gain[j];
    }
  }
  const Sites sites = sites_of(role);
  for (const Site site : sites.in) {
    if (!basis.at(site).empty()) apply_to_rows(basis.at(site), w);
  }
  for (const Site site : sites.out) {
    if (!basis.at(site).empty()) apply_to_columns(basis.at(site), w);
  }
}

template <class T>
void fuse_bias(const BasisChange& basis, Role role, T* bias, int64_t n) {
  for (const Site site : sites_of(role).out) {
    if (!basis.at(site).empty()) basis.at(site).apply(bias, n);
  }
}

template void fuse_weight(const BasisChange&, Role, const float*, MatrixView<float>);
template void fuse_weight(const BasisChange&, Role, const double*, MatrixView<double>);
template void fuse_bias(const BasisChange&, Role, float*, int64_t);
template void fuse_bias(const BasisChange&, Role, double*, int64_t);

Status check_basis(const BasisChange& basis, const ModelDesc& model) {
  QUERN_TRY(check_chain(basis.at(Site::kResidual), Site::kResidual, model.d_model));
  for (const LayerDesc& layer : model.layers) {
    const int64_t d_head = layer.attention.d_head;
    QUERN_TRY(check_chain(basis.at(Site::kValue), Site::kValue, d_head));
    QUERN_TRY(check_chain(basis.at(Site::kQk), Site::kQk, d_head));
    QUERN_TRY(check_chain(basis.at(Site::kHeads), Site::kHeads, layer.attention.n_heads * d_head));
    QUERN_TRY(check_chain(basis.at(Site::kFfn), Site::kFfn, layer.mlp.d_ffn));
  }
  return {};
}

}  // namespace quern
