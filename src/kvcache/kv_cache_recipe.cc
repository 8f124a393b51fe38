// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_cache_recipe.h"

#include <algorithm>

namespace quern {
namespace {

constexpr double kMostBits = 32;

bool selects(const std::vector<spec::WhereTerm>& where, size_t layer) {
  bool is_in = where.empty();
  for (const spec::WhereTerm& term : where) {
    if (term.has_layer(static_cast<int64_t>(layer))) is_in = term.add;
  }
  return is_in;
}

Status check_where(const std::vector<spec::WhereTerm>& where) {
  for (const spec::WhereTerm& term : where) {
    if (term.name == (term.last > 0 ? "layers" : "all")) continue;
    return usage_error("kv: no selector '{}'; a cache has all and layers[first:last]", term.name);
  }
  return {};
}

std::string stage_text(const KvRecipe& kept, const std::vector<spec::WhereTerm>& where) {
  return where.empty() ? kept.text : fmt::format("{} @ {}", kept.text, spec::print(where));
}

// auto(bits, kept, kept, ...)
Result<KvCacheRecipe> parse_auto(const spec::Call& call) {
  const auto is_number = [](const spec::Arg& arg) {
    return arg.name.empty() && arg.value.kind == spec::Value::Kind::kNumber;
  };
  if (call.args.empty() || !is_number(call.args[0]) || !(call.args[0].value.number > 0) ||
      call.args[0].value.number > kMostBits) {
    return usage_error("kv: auto takes bits, up to {}, and what layers may be kept as", kMostBits);
  }
  KvCacheRecipe recipe;
  recipe.stages.clear();
  KvMix& mix = recipe.mix.emplace();
  mix.bits = call.args[0].value.number;
  recipe.text = fmt::format("auto({}", spec::print(call.args[0].value));
  for (size_t i = 1; i < call.args.size(); ++i) {
    if (!call.args[i].name.empty()) {
      return usage_error("kv: auto has no parameter '{}'", call.args[i].name);
    }
    QUERN_ASSIGN(KvRecipe kept, KvRecipe::parse(spec::print(call.args[i].value)));
    recipe.text += fmt::format(", {}", kept.text);
    mix.menu.push_back(std::move(kept));
  }
  recipe.text += ")";
  return recipe;
}

}  // namespace

Result<KvCacheRecipe> KvCacheRecipe::parse(std::string_view text) {
  constexpr std::string_view kAuto = "auto:";
  const bool is_short = text.starts_with(kAuto);
  QUERN_ASSIGN(const std::vector<spec::Stage> stages,
               spec::parse_recipe(is_short ? fmt::format("auto({})", text.substr(kAuto.size()))
                                           : std::string(text)));
  if (stages.size() == 1 && stages[0].call.name == "auto" && stages[0].where.empty()) {
    return parse_auto(stages[0].call);
  }
  KvCacheRecipe recipe;
  recipe.text.clear();
  recipe.stages.clear();
  for (const spec::Stage& stage : stages) {
    if (stage.call.name == "auto") return usage_error("kv: auto plans all layers and stands alone");
    QUERN_TRY(check_where(stage.where));
    QUERN_ASSIGN(const KvRecipe kept, KvRecipe::parse(spec::print(stage.call)));
    if (!recipe.text.empty()) recipe.text += " | ";
    recipe.text += stage_text(kept, stage.where);
    recipe.stages.push_back({std::make_shared<const KvRecipe>(kept), stage.where});
  }
  return recipe;
}

KvCacheRecipe KvCacheRecipe::of_layers(const std::vector<KvRecipe>& kept) {
  const auto n = static_cast<int64_t>(kept.size());
  KvCacheRecipe recipe;
  recipe.text.clear();
  recipe.stages.clear();
  for (int64_t first = 0, last = 0; first < n; first = last) {
    const KvRecipe& one = kept[static_cast<size_t>(first)];
    last = first + 1;
    while (last < n && kept[static_cast<size_t>(last)].text == one.text) ++last;
    std::vector<spec::WhereTerm> where;
    if (first > 0 || last < n) where.push_back({true, "layers", first, last});
    recipe.text += first > 0 ? " | " : "";
    recipe.text += stage_text(one, where);
    recipe.stages.push_back({std::make_shared<const KvRecipe>(one), std::move(where)});
  }
  return recipe;
}

std::shared_ptr<const KvRecipe> KvCacheRecipe::of(size_t layer) const {
  for (const Stage& stage : stages) {
    if (selects(stage.where, layer)) return stage.kept;
  }
  static const auto halves = std::make_shared<const KvRecipe>();
  return halves;
}

std::vector<std::shared_ptr<const KvRecipe>> KvCacheRecipe::all() const {
  std::vector<std::shared_ptr<const KvRecipe>> all;
  for (const Stage& stage : stages) all.push_back(stage.kept);
  return all;
}

bool KvCacheRecipe::is_plain() const {
  return !mix && std::all_of(stages.begin(), stages.end(),
                             [](const Stage& s) { return s.kept->is_plain(); });
}

bool KvCacheRecipe::has_tables() const {
  return std::any_of(stages.begin(), stages.end(),
                     [](const Stage& s) { return s.kept->has_tables(); });
}

Status KvCacheRecipe::check(const ModelDesc& model) const {
  if (mix) return usage_error("kv: {} is still to be planned", text);
  for (const Stage& stage : stages) {
    for (const spec::WhereTerm& term : stage.where) {
      if (term.last > static_cast<int64_t>(model.layers.size())) {
        return usage_error("kv: {}[{}:{}] reaches past the model's {} layers", term.name,
                           term.first, term.last, model.layers.size());
      }
    }
  }
  for (size_t i = 0; i < model.layers.size(); ++i) {
    QUERN_TRY(of(i)->check(model.layers[i].attention.d_head));
  }
  return {};
}

double KvCacheRecipe::bits(const ModelDesc& model) const {
  double bits = 0, numbers = 0;
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const AttentionDesc& attention = model.layers[i].attention;
    const auto n = static_cast<double>(attention.n_kv_heads * attention.d_head);
    bits += n * of(i)->bits(attention.d_head);
    numbers += n;
  }
  return bits / numbers;
}

}  // namespace quern
