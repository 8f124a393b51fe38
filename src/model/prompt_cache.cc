// SPDX-License-Identifier: Apache-2.0
#include "model/prompt_cache.h"

#include <algorithm>

namespace quern {
namespace {

// All that keys, values and hidden rows depend on beside the tokens and the recipe of the cache:
// the model, how its weights meet their inputs, and the angles where they depend on the room.
std::string maker(const Model& model, const KvCache& cache) {
  std::string text = model.files().digest();
  text += fmt::format(" {}", activations_name(model.files().activations()));
  for (const LayerDesc& layer : model.desc().layers) {
    const RopeDesc& rope = layer.attention.rope;
    if (rope.inv_freq_long.empty() || cache.capacity() <= rope.original_context) continue;
    return text + " long";
  }
  return text;
}

}  // namespace

Result<PromptCache> PromptCache::open(const std::string& path) {
  QUERN_ASSIGN(KvFile file, KvFile::open(path));
  return PromptCache(path, std::move(file));
}

Status PromptCache::load(const Model& model, KvCache& cache, std::span<float> hidden) const {
  const std::string expected = maker(model, cache);
  if (file_.head().model != expected) {
    return error("{}: saved by the model and activations '{}', expected '{}'", path_,
                 file_.head().model, expected);
  }
  if (file_.head().hidden.size() != hidden.size()) {
    return error("{}: hidden has {} values, expected {}", path_, file_.head().hidden.size(),
                 hidden.size());
  }
  Status checked = check_ids(model.desc(), tokens());
  if (checked) checked = file_.load(cache);
  if (!checked) return tl::unexpected(in_context(checked.error(), path_));
  std::copy(file_.head().hidden.begin(), file_.head().hidden.end(), hidden.begin());
  return {};
}

Status save_prompt_cache(const std::string& path, const Model& model, const KvCache& cache,
                         std::span<const Token> tokens, std::span<const float> hidden) {
  return save_kv_file(
      path, cache,
      {maker(model, cache), {tokens.begin(), tokens.end()}, {hidden.begin(), hidden.end()}});
}

}  // namespace quern
