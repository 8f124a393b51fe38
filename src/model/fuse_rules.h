// SPDX-License-Identifier: Apache-2.0
// The rules that the folding pass and the descriptions of changed models share.
#pragma once

#include <vector>

#include "model/fuse.h"

namespace quern {

// The sites a weight reads, in the order in which its input meets them.
std::vector<Site> sites_read(Role role);
// The sites a weight writes, of which kHeads, kFfn, kAttnIn and kMlpIn only what folds.
std::vector<Site> sites_written(Role role);
// The norm whose gain a role's columns take up; kEmbed if none.
Role norm_before(Role role);
// Of a norm of the stream.
const NormDesc& norm_desc(const ModelDesc& model, const WeightId& norm);
// How many operators at the front of a chain fold into the writer of its input.
size_t n_folded(const BasisChange& basis, const ModelDesc& model, Site site, int layer);
// Whether the stream between layers is in another basis, so that what norms multiply and add must
// move behind them.
bool changes_stream(const BasisChange& basis);
// Whether the head reads the stream's basis.
bool is_head_folded(const BasisChange& basis);

}  // namespace quern
