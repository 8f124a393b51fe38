// SPDX-License-Identifier: Apache-2.0
// What it costs to keep the cache of one layer in another way, all others as halves.
//
// The calibration samples move through the model one layer at a time. At each layer they show what
// every variant of it does to the output of attention; a variant that is a probe also goes on
// through the layers behind, all of them side by side, and its output is compared with the
// original's.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "calib/corpus.h"
#include "kvcache/kv_recipe.h"
#include "model/model.h"

namespace quern {

struct KvVariant {
  size_t layer = 0;
  KvRecipe kept;
  bool is_probe = false;
};

struct KvVariantCost {
  double loss = 0;  // squared error of what attention gives, relative; behind o's online operators
  double kl = -1;   // of a probe: divergence of the output, nats per token
};

// Costs of variants in their order. `proceed` is asked with the share done; false cancels.
Result<std::vector<KvVariantCost>> measure_kv(const Model& model, const Corpus& corpus,
                                              std::span<const KvVariant> variants,
                                              const std::function<bool(double)>& proceed);

}  // namespace quern
