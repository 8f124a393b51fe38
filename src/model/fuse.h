// SPDX-License-Identifier: Apache-2.0
// The one folding pass: turns a checkpoint's weight into the weight of the same function in
// another basis. All arithmetic in double; the caller rounds once.
#pragma once

#include "model/layer_desc.h"
#include "model/roles.h"
#include "tensor/view.h"
#include "transforms/basis.h"

namespace quern {

// True if this basis changes the weight (or its bias, or the norm) of a role.
bool is_changed(const BasisChange& basis, Role role);

// Norms whose gain moves into the weights that read them; their own gain becomes 1.
bool is_gain_folded(const BasisChange& basis, Role norm);
// The norm whose gain a role's columns take up; kEmbed if none.
Role folded_norm(Role role);

// W [n_out, n_in] <- out-operators * W * diag(gain) * in-operators^T; `gain` [n_in] is the gain of
// folded_norm(role) including its offset, or null. T = double; float exists for tests of precision.
template <class T>
void fuse_weight(const BasisChange& basis, Role role, const T* gain, MatrixView<T> w);
// The bias [n] of a role: out-operators * bias.
template <class T>
void fuse_bias(const BasisChange& basis, Role role, T* bias, int64_t n);

// Whether every operator fits the sizes of its site; for bases read from files.
Status check_basis(const BasisChange& basis, const ModelDesc& model);

}  // namespace quern
