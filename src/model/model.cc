// SPDX-License-Identifier: Apache-2.0
#include "model/model.h"

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "base/check.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "kvcache/kv_tables.h"
#include "model/eviction.h"
#include "model/norms.h"
#include "model/rope.h"

namespace quern {

Status check_ids(const ModelDesc& model, std::span<const Token> ids) {
  for (const Token id : ids) {
    if (id < 0 || id >= model.n_vocab) {
      return error("token {} is not in the vocabulary of {}", id, model.n_vocab);
    }
  }
  return {};
}

void embed(const ModelDesc& model, const EndWeights& ends, std::span<const Token> ids,
           int64_t position, MatrixView<float> h, SpentTime* time) {
  const int64_t width = ends.embed.n_in;
  parallel_for(h.rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> place(static_cast<size_t>(width));
    for (int64_t i = begin; i < end; ++i) {
      float* row = h.row(i);
      decode_rows(ends.embed, ids[static_cast<size_t>(i)], 1, row);
      if (model.embed_scale != 1) {
        kernels().scale(static_cast<float>(model.embed_scale), width, row);
      }
      if (ends.pos_embed.exists()) {
        decode_rows(ends.pos_embed, position + i + model.pos_offset, 1, place.data());
        kernels().add(place.data(), width, row);
      }
      if (ends.is_centred) {
        const double sum = std::accumulate(row, row + width, 0.0);
        const auto mean = static_cast<float>(sum / static_cast<double>(width));
        for (int64_t j = 0; j < width; ++j) row[j] -= mean;
      }
      std::fill(row + width, row + h.cols, 0.0f);
    }
  });
  if (!ends.is_turned) apply_online(ends.residual, h, time);
}

Result<std::unique_ptr<Model>> Model::open(const std::string& path, Activations activations) {
  QUERN_ASSIGN(auto files, ModelFiles::open(path, activations));
  ModelParts parts{files->desc(), {}, {}};
  QUERN_ASSIGN(parts.ends, files->ends());
  for (size_t i = 0; i < parts.desc.layers.size(); ++i) {
    QUERN_ASSIGN(LayerWeights layer, files->layer(static_cast<int>(i)));
    parts.layers.push_back(std::move(layer));
  }
  std::unique_ptr<Model> model = assemble(std::move(parts));
  model->files_ = std::move(files);
  return model;
}

std::unique_ptr<Model> Model::assemble(ModelParts parts) {
  QUERN_CHECK(parts.layers.size() == parts.desc.layers.size());
  std::unique_ptr<Model> model(new Model);
  model->parts_ = std::move(parts);
  return model;
}

const ModelFiles& Model::files() const {
  QUERN_CHECK(files_ != nullptr);
  return *files_;
}

Status check_context(const ModelDesc& model, int64_t n, const KvCacheRecipe& recipe) {
  bool is_endless = model.positions == PositionKind::kRope;
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const auto kept = recipe.of(i);
    const KvPolicy* policy = kept->policy.get();
    if (policy != nullptr && policy->n_moving() > 0 && model.positions != PositionKind::kRope) {
      return usage_error("{}: positions=cache is for models with rotary positions", policy->spec());
    }
    is_endless = is_endless && policy != nullptr && policy->most_distance() <= model.n_context;
  }
  if (n >= 1 && (n <= model.n_context || is_endless)) return {};
  return usage_error("context of {} tokens: the model was made for 1..{}", n, model.n_context);
}

Result<KvCache> Model::make_cache(int64_t capacity, const KvCacheRecipe& recipe) const {
  QUERN_TRY(recipe.check(desc()));
  QUERN_TRY(check_context(desc(), capacity, recipe));
  std::vector<KvShape> shapes;
  for (const LayerDesc& layer : desc().layers) {
    shapes.push_back({layer.attention.n_kv_heads, layer.attention.d_head});
    shapes.back().n_heads = layer.attention.n_heads;
  }
  QUERN_TRY(add_ropes(capacity, recipe, shapes));
  QUERN_TRY(check_heads(capacity, recipe));
  QUERN_TRY(add_tables(recipe, shapes));
  return KvCache(shapes, capacity, recipe);
}

// Layers that turn alike share one.
Status Model::add_ropes(int64_t capacity, const KvCacheRecipe& recipe,
                        std::vector<KvShape>& shapes) const {
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (!recipe.of(i)->codes_unturned) continue;
    if (desc().positions != PositionKind::kRope || !parts_.layers[i].online.qk.empty()) {
      return usage_error("kv: rope=read is for models whose keys are last turned by RoPE");
    }
    const RopeDesc& rope = desc().layers[i].attention.rope;
    for (size_t before = 0; before < i && shapes[i].rope == nullptr; ++before) {
      if (desc().layers[before].attention.rope == rope) shapes[i].rope = shapes[before].rope;
    }
    if (shapes[i].rope == nullptr) shapes[i].rope = std::make_shared<const KvRope>(rope, capacity);
  }
  return {};
}

// Whether caches that know what heads mean find them in the model's own basis.
Status Model::check_heads(int64_t capacity, const KvCacheRecipe& recipe) const {
  for (size_t i = 0; i < parts_.layers.size(); ++i) {
    const auto kept = recipe.of(i);
    if (!kept->absorbs() && kept->merge == nullptr) continue;
    if (!parts_.layers[i].online.qk.empty()) {
      return usage_error("kv: {} is for models whose keys are last turned by RoPE", kept->text);
    }
    const int64_t window = desc().layers[i].attention.window;
    if (kept->absorbs() && window > 0 && window < capacity) {
      return usage_error(
          "kv: {}: what is absorbed cannot leave the window of {} tokens of layer {}", kept->text,
          window, i);
    }
  }
  return {};
}

Result<std::shared_ptr<const KvTableSet>> Model::tables(const KvCacheRecipe& recipe) const {
  const std::scoped_lock lock(tables_mutex_);
  if (tables_ != nullptr) return tables_;
  if (files_ == nullptr) {
    return usage_error("kv: {}: a model without files has no tables", recipe.text);
  }
  const std::string path = kv_tables_path(files_->path());
  const std::string maker = recipe.has_tables() ? "quern calibrate-kv" : "training";
  std::error_code problem;
  if (!std::filesystem::exists(path, problem)) {
    return usage_error("kv: {} needs tables of the model, and there is no {}: {} makes it",
                       recipe.text, path, maker);
  }
  QUERN_ASSIGN(KvTableSet set, KvTableSet::open(path));
  if (set.model != files_->digest()) {
    return usage_error("{}: made of another model than this, {}: {} makes it anew", path,
                       files_->digest(), maker);
  }
  tables_ = std::make_shared<const KvTableSet>(std::move(set));
  return tables_;
}

Status Model::add_tables(const KvCacheRecipe& recipe, std::vector<KvShape>& shapes) const {
  for (size_t i = 0; i < shapes.size(); ++i) {
    KvShape& shape = shapes[i];
    const auto kept = recipe.of(i);
    shape.merge = kept->merge;
    if (!kept->has_tables() && !kept->has_trained()) continue;
    QUERN_ASSIGN(const auto set, tables(recipe));
    const AttentionDesc& a = desc().layers[i].attention;
    const KvHeads heads{a.n_heads, a.n_kv_heads, a.d_head};
    const auto codecs = [&](KvSide side, const KvCodec& codec) {
      return set->codecs(i, {side, shape.n_kv_heads, shape.d_head}, codec);
    };
    if (kept->is_coded() && kept->keys->tables() == KvTables::kOfModel) {
      QUERN_ASSIGN(shape.keys, codecs(KvSide::kKeys, *kept->keys));
    }
    if (kept->is_coded() && kept->values->tables() == KvTables::kOfModel) {
      QUERN_ASSIGN(shape.values, codecs(KvSide::kValues, *kept->values));
    }
    if (kept->absorbs()) {
      QUERN_ASSIGN(shape.maps, KvFeatureMaps::load(*set, i, heads));
    }
    if (kept->merge == nullptr) continue;
    QUERN_ASSIGN(shape.merge, kept->merge->with_tables(*set, i, heads));
  }
  return {};
}

std::string kv_tables_path(const std::string& model) {
  std::error_code problem;
  const bool is_folder = std::filesystem::is_directory(model, problem);
  return is_folder ? (std::filesystem::path(model) / "kv_tables.safetensors").string()
                   : model + ".kv_tables.safetensors";
}

Status Model::forward(KvCache& cache, std::span<const Token> ids, MatrixView<float> hidden,
                      const Taps& tap) const {
  QUERN_TRY(check_ids(desc(), ids));
  const auto n = static_cast<int64_t>(ids.size());
  if (cache.length() + n > cache.capacity()) {
    return error("the context is full: {} + {} tokens, room for {}", cache.length(), n,
                 cache.capacity());
  }
  embed(desc(), parts_.ends, ids, cache.length(), hidden, &online_time_);
  RopeTables rope;
  for (size_t i = 0; i < parts_.layers.size(); ++i) {
    const SequenceRows rows{&cache.layer(i), cache.length(), n, cache.capacity()};
    const auto layer = static_cast<int>(i);
    forward_layer({&desc(), &rope, layer, &online_time_, &attention_time_}, parts_.layers[i],
                  {&rows, 1}, hidden, tap ? tap(layer) : nullptr);
  }
  cache.advance(n);
  finish(hidden);
  return {};
}

Status Model::step_batch(std::span<KvCache> caches, std::span<const Token> ids,
                         MatrixView<float> hidden) const {
  QUERN_TRY(check_ids(desc(), ids));
  for (const KvCache& cache : caches) {
    if (cache.length() >= cache.capacity()) {
      return error("the context is full: {} tokens", cache.capacity());
    }
  }
  for (size_t s = 0; s < caches.size(); ++s) {
    embed(desc(), parts_.ends, ids.subspan(s, 1), caches[s].length(),
          hidden.row_range(static_cast<int64_t>(s), 1), &online_time_);
  }
  std::vector<SequenceRows> rows(caches.size());
  RopeTables rope;
  for (size_t i = 0; i < parts_.layers.size(); ++i) {
    for (size_t s = 0; s < caches.size(); ++s) {
      rows[s] = {&caches[s].layer(i), caches[s].length(), 1, caches[s].capacity()};
    }
    forward_layer({&desc(), &rope, static_cast<int>(i), &online_time_, &attention_time_},
                  parts_.layers[i], rows, hidden);
  }
  for (KvCache& cache : caches) cache.advance(1);
  finish(hidden);
  return {};
}

void Model::end_prompt(KvCache& cache) const {
  for (size_t i = 0; i < parts_.layers.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    quern::end_prompt(desc().layers[i].attention, layer, cache.layer(i));
  }
}

void Model::finish(MatrixView<float> hidden) const {
  finish_hidden(desc(), parts_.ends, hidden, &online_time_);
}

double Model::online_seconds() const { return online_time_.seconds(); }
double Model::attention_seconds() const { return attention_time_.seconds(); }

void finish_hidden(const ModelDesc& model, const EndWeights& ends, MatrixView<float> h,
                   SpentTime* time) {
  apply_online(ends.residual, h, time, Online::kInverse);
  apply_norm(model.final_norm, ends.final_norm, h, h);
  if (ends.is_turned) apply_online(ends.residual, h, time);
}

void Model::logits(MatrixView<const float> hidden, MatrixView<float> logits) const {
  head_logits(desc(), parts_.ends, hidden, logits);
}

void head_logits(const ModelDesc& model, const EndWeights& ends, MatrixView<const float> hidden,
                 MatrixView<float> logits) {
  linear(ends.head, hidden, logits);
  if (model.logit_soft_cap == 0) return;
  for (int64_t i = 0; i < logits.rows; ++i) {
    kernels().soft_cap(static_cast<float>(model.logit_soft_cap), logits.cols, logits.row(i));
  }
}

void Model::for_each_linear(const std::function<void(const LinearWeight&)>& visit) const {
  const auto visit_if = [&](const LinearWeight& weight) {
    if (weight.exists()) visit(weight);
  };
  for (size_t i = 0; i < parts_.layers.size(); ++i) {
    const LayerWeights& layer = parts_.layers[i];
    for (const LinearWeight* weight : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.router,
                                       &layer.shared_router, &layer.shared.gate, &layer.shared.up,
                                       &layer.shared.down, &layer.attn_skip, &layer.mlp_skip}) {
      visit_if(*weight);
    }
    const MlpDesc& mlp = desc().layers[i].mlp;
    const size_t used = mlp.n_experts > 0 ? static_cast<size_t>(mlp.top_k) : 1;
    for (size_t e = 0; e < used; ++e) {
      const ExpertWeights& expert = layer.experts[e];
      for (const LinearWeight* weight : {&expert.gate, &expert.up, &expert.down}) visit_if(*weight);
    }
  }
  visit_if(parts_.ends.head);
}

size_t Model::bytes_per_token() const {
  size_t total = 0;
  for_each_linear([&](const LinearWeight& weight) { total += weight.n_bytes(); });
  return total;
}

}  // namespace quern
