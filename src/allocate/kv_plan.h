// SPDX-License-Identifier: Apache-2.0
// A cache for any number of bits: which codec keeps the keys and which the values of each layer, so
// that the model's output changes least (after KVTuner, arXiv 2502.04420).
//
// What a codec costs on one side of one layer is
//     kl(codec) = probe_kl * loss(codec) / loss(probe),
// with loss the relative squared error of what attention gives, and probe_kl the divergence of the
// model's output, where that side of that layer alone is kept by the codec or by the probe
// (allocate/kv_measure.h). Costs of sides and layers add up, and the choice is an integer programme
// over the bytes of pages (allocate/choose.h).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "calib/corpus.h"
#include "kvcache/kv_cache_recipe.h"
#include "model/model.h"

namespace quern {

struct KvPlanOptions {
  std::string calibration;  // text file; empty: text that the model draws
  // Long samples: what a layer's keys are worth may show behind hundreds of positions only.
  CorpusOptions corpus = {.n_samples = 8, .length = 1024};
  std::string folder;  // where costs are kept by what they depend on; empty: nowhere
  // Told the share done of what; false cancels.
  std::function<bool(double, std::string_view)> proceed = [](double, std::string_view) {
    return true;
  };
};

struct KvPlan {
  KvCacheRecipe recipe;
  double bits = 0;  // of a number in a page, all layers
  double kl = 0;    // expected, nats per token
  // The best of the menu for all layers alike within the same bits; empty: none is so small.
  std::string uniform;
  double uniform_bits = 0, uniform_kl = 0;
};

// Of an opened model. Fails where the menu cannot code its heads, or not in so few bits.
Result<KvPlan> plan_kv(const Model& model, const KvMix& mix, const KvPlanOptions& options);

}  // namespace quern
