// SPDX-License-Identifier: Apache-2.0
// How the cache of a whole model keeps keys and values, layer by layer: what `--kv` names.
//
//   cache = kept [ "@" layers ] { "|" kept [ "@" layers ] } | auto(bits, kept, kept, ...)
//
// `kept` is a text of kv_recipe.h, `layers` names some as `layers[0:3]+layers[7:8]` or
// `all-layers[0:1]`. A layer is kept as the first that names it says; what none names stays halves.
// `auto` leaves the choice for each layer to a planner, which makes such a text of it
// (allocate/kv_plan.h); "auto:2.5" is auto(2.5).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/kv_recipe.h"
#include "model/layer_desc.h"
#include "spec/spec.h"

namespace quern {

// Of a number in a coded page, side information included, at most so many bits in the mean over all
// keys and values; and what layers may be kept as.
struct KvMix {
  double bits = 0;
  std::vector<KvRecipe> menu;  // empty: the planner's
};

struct KvCacheRecipe {
  struct Stage {
    std::shared_ptr<const KvRecipe> kept;
    std::vector<spec::WhereTerm> where;  // empty: all layers
  };
  std::string text;  // canonical
  std::vector<Stage> stages;
  std::optional<KvMix> mix;  // then there are no stages yet, and nothing else can be asked

  // All layers alike.
  KvCacheRecipe() : KvCacheRecipe(KvRecipe()) {}
  KvCacheRecipe(const KvRecipe& kept)  // NOLINT(google-explicit-constructor): one is also the other
      : text(kept.text), stages{{std::make_shared<const KvRecipe>(kept), {}}} {}
  static Result<KvCacheRecipe> parse(std::string_view text);
  // Of layers in their order; neighbours that are kept alike share a stage.
  static KvCacheRecipe of_layers(const std::vector<KvRecipe>& kept);

  std::shared_ptr<const KvRecipe> of(size_t layer) const;
  // Every layer's recipe is one of these.
  std::vector<std::shared_ptr<const KvRecipe>> all() const;
  bool is_plain() const;
  bool has_tables() const;  // of a model
  // Whether a model has the layers, and its heads can be coded.
  Status check(const ModelDesc& model) const;
  // As KvRecipe's, the mean over the numbers of all layers.
  double bits(const ModelDesc& model) const;
};

}  // namespace quern
