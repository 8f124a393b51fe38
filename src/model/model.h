// SPDX-License-Identifier: Apache-2.0
// A model that runs: mapped weights, dense or coded, and the forward pass over them.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "kvcache/kv_cache.h"
#include "kvcache/kv_tables.h"
#include "model/forward.h"
#include "model/model_files.h"
#include "tokenizer/tokenizer.h"

namespace quern {

// What a forward pass reads.
struct ModelParts {
  ModelDesc desc;
  EndWeights ends;
  std::vector<LayerWeights> layers;  // as many as in `desc`, in its shapes
};

class Model {
 public:
  static Result<std::unique_ptr<Model>> open(const std::string& path,
                                             Activations activations = Activations::kExact);
  // A model that no file holds, in the basis it came in.
  static std::unique_ptr<Model> assemble(ModelParts parts);

  const ModelDesc& desc() const { return parts_.desc; }
  const ModelParts& parts() const { return parts_; }
  // Of an opened model only.
  const ModelFiles& files() const;

  // Room for `capacity` positions; fails past the model's context, but where the cache keeps all
  // distances within it. What is fitted or trained for the model is at kv_tables_path, read once.
  Result<KvCache> make_cache(int64_t capacity, const KvCacheRecipe& recipe = {}) const;

  // Runs the tokens as the next positions of the cache's sequence. hidden [ids.size(), d_model] is
  // what the head reads. Fails, with nothing stored, on an unknown id or a full cache.
  // Each layer shows the tap that `tap` names what its matrices read; null: none.
  using Taps = std::function<LayerTap*(int layer)>;
  Status forward(KvCache& cache, std::span<const Token> ids, MatrixView<float> hidden,
                 const Taps& tap = nullptr) const;

  // One step of many sequences: ids[i] is the next token of caches[i]. hidden [n, d_model].
  Status step_batch(std::span<KvCache> caches, std::span<const Token> ids,
                    MatrixView<float> hidden) const;

  // Tells a cache whose policy waits for it that the prompt ends here; once.
  void end_prompt(KvCache& cache) const;

  // logits [n, n_vocab] of hidden rows.
  void logits(MatrixView<const float> hidden, MatrixView<float> logits) const;

  // The matrices that one generated token is multiplied by, the head last; of experts as many as
  // are used.
  void for_each_linear(const std::function<void(const LinearWeight&)>& visit) const;
  // Bytes of weights that one generated token reads.
  size_t bytes_per_token() const;
  // Spent by all calls so far in online operators, and in attention over the cache.
  double online_seconds() const;
  double attention_seconds() const;

 private:
  Model() = default;
  void finish(MatrixView<float> hidden) const;
  Status add_ropes(int64_t capacity, const KvCacheRecipe& recipe,
                   std::vector<KvShape>& shapes) const;
  Status check_heads(int64_t capacity, const KvCacheRecipe& recipe) const;
  Result<std::shared_ptr<const KvTableSet>> tables(const KvCacheRecipe& recipe) const;
  Status add_tables(const KvCacheRecipe& recipe, std::vector<KvShape>& shapes) const;
  std::unique_ptr<ModelFiles> files_;  // null if assembled; the parts may point into it
  ModelParts parts_;
  mutable SpentTime online_time_, attention_time_;
  mutable std::mutex tables_mutex_;
  mutable std::shared_ptr<const KvTableSet> tables_;  // from when a cache needs them
};

// The tables of cache codecs (kvcache/kv_tables.h) of a model: in its folder, or beside its file.
std::string kv_tables_path(const std::string& model);

// Whether n positions go into a cache of this recipe.
Status check_context(const ModelDesc& model, int64_t n, const KvCacheRecipe& recipe);

// Fails on the first id that is not in the vocabulary; a tokenizer may belong to another model.
Status check_ids(const ModelDesc& model, std::span<const Token> ids);

// What stands before and after the layers; shared by the runtime and calibration.
// h [ids.size(), d_model] <- embedding of ids at positions from `position`, in the layers' basis.
void embed(const ModelDesc& model, const EndWeights& ends, std::span<const Token> ids,
           int64_t position, MatrixView<float> h, SpentTime* time = nullptr);
// logits [n, n_vocab] of hidden rows, capped where the model caps them.
void head_logits(const ModelDesc& model, const EndWeights& ends, MatrixView<const float> hidden,
                 MatrixView<float> logits);
// h <- what the head reads: back to the final norm's basis, that norm, then to the head's.
void finish_hidden(const ModelDesc& model, const EndWeights& ends, MatrixView<float> h,
                   SpentTime* time = nullptr);

}  // namespace quern
