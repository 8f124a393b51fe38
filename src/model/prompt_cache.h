// SPDX-License-Identifier: Apache-2.0
// The cache of a text in a file, so that a later run need not read the text again. The runs may be
// of different processes; what is generated is what one run would have generated.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvcache/kv_file.h"
#include "model/model.h"

namespace quern {

class PromptCache {
 public:
  static Result<PromptCache> open(const std::string& path);

  std::span<const Token> tokens() const { return file_.head().tokens; }
  // Fills an empty cache of the model; hidden [d_model] is what the head reads of the newest
  // position. Fails if another model, other activations or another recipe made the file.
  Status load(const Model& model, KvCache& cache, std::span<float> hidden) const;

 private:
  explicit PromptCache(std::string path, KvFile file)
      : path_(std::move(path)), file_(std::move(file)) {}
  std::string path_;
  KvFile file_;
};

// `tokens` are those of the cache, `hidden` as above. Of an opened model only.
Status save_prompt_cache(const std::string& path, const Model& model, const KvCache& cache,
                         std::span<const Token> tokens, std::span<const float> hidden);

}  // namespace quern
