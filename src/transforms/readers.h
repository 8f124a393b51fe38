// SPDX-License-Identifier: Apache-2.0
// The weights of a layer that read a site, for transforms that are fitted to both sides of it.
#pragma once

#include <vector>

#include "transforms/transform.h"

namespace quern {

struct Reader {
  Role role = Role::kQ;
  int expert = -1;  // -1: not one of several
};

// Of kAttnIn, kHeads, kMlpIn or kFfn: all that the site's operators change the columns of, routers
// and experts among them.
std::vector<Reader> readers(const LayerDesc& layer, Site site);

// Values of the channels of kHeads, [n_heads * d_head]: each becomes the largest of those that one
// channel of v feeds, so that a diagonal made of them folds into v.
template <class T>
void share_in_kv_groups(const AttentionDesc& attention, std::vector<T>& values);

}  // namespace quern
