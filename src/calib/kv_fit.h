// SPDX-License-Identifier: Apache-2.0
// Tables of cache codecs from calibration text, layer by layer: the keys before RoPE and the values
// that a model makes of it, and how strongly its queries meet the channels of keys.
#pragma once

#include <functional>
#include <span>

#include "calib/corpus.h"
#include "kvcache/kv_cache_recipe.h"
#include "kvcache/kv_tables.h"
#include "model/model_files.h"

namespace quern {

// Of every codec in `recipes` that has tables. The first positions that a recipe keeps as sinks are
// not looked at. `proceed` is asked between samples with the share done; false cancels.
Result<KvTableSet> fit_kv_tables(const ModelFiles& files, const Corpus& corpus,
                                 std::span<const KvCacheRecipe> recipes,
                                 const std::function<bool(double)>& proceed);

}  // namespace quern
