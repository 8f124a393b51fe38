// SPDX-License-Identifier: Apache-2.0
#include "calib/swapped_layers.h"

#include "calib/variants.h"
#include "model/fused_source.h"

namespace quern {
namespace {

// A layer of one must run in the place of the other's.
Status check_alike(const ModelFiles& original, const ModelDesc& fused, const Model& compressed) {
  bool is_alike = compressed.files().packed().source_digest == original.digest();
  const std::vector<WeightId> ids = weight_ids(fused);
  is_alike = is_alike && ids == weight_ids(compressed.desc());
  for (size_t i = 0; is_alike && i < ids.size(); ++i) {
    is_alike = weight_shape(fused, ids[i]) == weight_shape(compressed.desc(), ids[i]);
  }
  if (is_alike) return {};
  return error("{}: not made of {}", compressed.files().path(), original.path());
}

}  // namespace

Result<SwappedLayers> swap_layers(const ModelFiles& original, const Model& compressed,
                                  const Corpus& corpus,
                                  const std::function<bool(double)>& proceed) {
  if (compressed.files().basis().is_sliced()) {
    return error("{}: layers of a sliced stream fit no other", compressed.files().path());
  }
  const FusedSource fused(original, compressed.files().basis());
  QUERN_TRY(check_alike(original, fused.desc(), compressed));
  const ModelParts& parts = compressed.parts();
  const size_t n_layers = parts.layers.size();
  QUERN_ASSIGN(EndWeights ends, fused.ends());
  Variants variants(fused.desc(), corpus, std::move(ends));
  const bool has_coded_ends = parts.ends.embed.codec != nullptr || parts.ends.head.codec != nullptr;
  if (has_coded_ends) variants.add_ends(parts.ends);
  for (size_t i = 0; i < n_layers; ++i) {
    const auto layer = static_cast<int>(i);
    const auto go = [&] { return proceed(static_cast<double>(i) / static_cast<double>(n_layers)); };
    QUERN_ASSIGN(const LayerWeights weights, fused.layer(layer));
    if (!variants.add_layer(layer, parts.layers[i], go)) return cancelled();
    if (!variants.advance(layer, weights, go)) return cancelled();
  }
  QUERN_ASSIGN(std::vector<double> kl, variants.divergences([&] { return proceed(1); }));
  SwappedLayers swapped;
  if (has_coded_ends) {
    swapped.ends = kl[0];
    kl.erase(kl.begin());
  }
  swapped.layers = std::move(kl);
  return swapped;
}

}  // namespace quern
