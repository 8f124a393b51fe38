// SPDX-License-Identifier: Apache-2.0
// Tables of cache codecs from calibration text, layer by layer: the keys before RoPE and the values
// that a model makes of it, and what a squared error of each of these numbers counts.
#pragma once

#include <functional>
#include <span>

#include "calib/corpus.h"
#include "kvcache/kv_cache_recipe.h"
#include "kvcache/kv_tables.h"
#include "model/model_files.h"

namespace quern {

// By what errors count:
//   kGradients  the squared gradient of the loss with respect to the number, by labels that the
//               model draws (calib/gradients.h): the diagonal of the Fisher matrix (KVQuant, arXiv
//               2401.18079). For a model that has gradients.
//   kQueries    keys by the mean square of what queries have in their channel and the one it turns
//               with, values all alike.
enum class KvWeighing : uint8_t { kGradients, kQueries };

struct KvFitOptions {
  KvWeighing weighing = KvWeighing::kGradients;
  uint64_t seed = 0;  // of the labels
  // Asked between samples with the share done; false cancels.
  std::function<bool(double)> proceed = [](double) { return true; };
};

// Of every codec in `recipes` that has tables. The first positions that a recipe keeps as sinks are
// not looked at. Gradients hold the streams of the whole corpus between all layers: gradient_part
// is as much of one as they are for.
Result<KvTableSet> fit_kv_tables(const ModelFiles& files, const Corpus& corpus,
                                 std::span<const KvCacheRecipe> recipes,
                                 const KvFitOptions& options);

}  // namespace quern
