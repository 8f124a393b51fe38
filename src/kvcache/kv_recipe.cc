// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_recipe.h"

#include "kernels/hadamard.h"
#include "kvcache/kv_sinks.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"k", ParamKind::kCall, "none", 0, 0, "", "codec of keys"},
    {"v", ParamKind::kCall, "none", 0, 0, "", "codec of values"},
    {"window", ParamKind::kInt, "0", 0, 1 << 20, "", "newest positions that stay halves"},
    {"sinks", ParamKind::kInt, "0", 0, kMostKvSinks, "", "first positions that stay halves"},
    {"rope", ParamKind::kChoice, "stored", 0, 0, "stored|read", "when coded keys are turned"},
    {"rotate", ParamKind::kChoice, "false", 0, 0, "true|false", "heads by a Hadamard matrix"},
    {"evict", ParamKind::kCall, "none", 0, 0, "", "policy of eviction"},
    {"merge", ParamKind::kCall, "none", 0, 0, "", "rule of merging"},
};

constexpr KvPreset kPresets[] = {
    {"q8", "kv(k=int(8), v=int(8))", "8 bits"},
    {"q4", "kv(k=int(4), v=int(4), rotate=true)", "4 bits, rotated"},
    {"quarot-kv4",
     "kv(k=int(4, group=128, clip=0.95), v=int(4, group=128, clip=0.95), rotate=true)",
     "QuaRot's cache"},
    {"kivi-4bit", "kv(k=int(4, per=channel), v=int(4), window=64)", "KIVI at 4 bits"},
    {"kivi-2bit", "kv(k=int(2, per=channel), v=int(2), window=64)", "KIVI at 2 bits"},
    {"kvquant-4bit", "kv(k=nuq(4), v=nuq(4), sinks=1, rope=read)", "KVQuant at 4 bits"},
    {"kvquant-3bit", "kv(k=nuq(3), v=nuq(3), sinks=1, rope=read)", "KVQuant at 3 bits"},
    {"kvquant-2bit", "kv(k=nuq(2, qnorm=true), v=nuq(2, qnorm=true), sinks=1, rope=read)",
     "KVQuant at 2 bits"},
    {"gear-4bit", "kv(k=gear(int(4, per=channel, group=64)), v=gear(int(4, group=256)))",
     "GEAR at 4 bits"},
    {"gear-2bit", "kv(k=gear(int(2, per=channel, group=64)), v=gear(int(2, group=64)))",
     "GEAR at 2 bits"},
    {"gear-l-2bit",
     "kv(k=gear(int(2, per=channel, group=64), outliers=0), v=gear(int(2, group=64), outliers=0))",
     "GEAR at 2 bits, low rank alone"},
    {"decoquant-4bit", "kv(k=deco(int(4, group=256)), v=deco(int(4, group=256)))",
     "DecoQuant at 4 bits"},
    {"decoquant-2bit", "kv(k=deco(int(2, group=256)), v=deco(int(2, group=256)))",
     "DecoQuant at 2 bits"},
    {"qaq-3bit", "kv(k=qaq(50, outliers=0), v=qaq(10, outliers=0), rotate=true)",
     "QAQ, about 3 bits"},
    {"lloyd-4bit", "kv(k=lloyd(4), v=lloyd(4), rotate=true)", "TurboQuant at 4 bits"},
    {"lloyd-3bit", "kv(k=lloyd(3), v=lloyd(3), rotate=true)", "TurboQuant at 3 bits"},
    {"lloyd-2bit", "kv(k=lloyd(2), v=lloyd(2), rotate=true)", "TurboQuant at 2 bits"},
};

// Which positions stay apart: a policy or a rule of merging, or neither.
Status read_kept(const spec::Params& params, bool is_coded, KvRecipe& recipe) {
  if (params.call("evict").name != "none") {
    QUERN_ASSIGN(recipe.policy, make_kv_policy(params.call("evict")));
  }
  if (params.call("merge").name == "none") return {};
  QUERN_ASSIGN(recipe.merge, make_kv_merge(params.call("merge")));
  if (!is_coded && recipe.policy == nullptr) return {};
  return usage_error(
      "kv: merge={} with codecs or a policy: slots that still change are halves, and all stay",
      recipe.merge->spec());
}

// Whether a policy goes with what else the recipe says.
Status check_policy(const KvRecipe& recipe) {
  const KvPolicy& policy = *recipe.policy;
  if (recipe.sinks != 0 || recipe.codes_unturned) {
    return usage_error("kv: sinks and rope=read with {}, which moves positions", policy.spec());
  }
  QUERN_TRY(policy.check_coded());
  if (recipe.n_queries() > 0) {
    return usage_error("kv: {} and {} with {}: pages that go by attention are not evicted",
                       recipe.keys->spec(), recipe.values->spec(), policy.spec());
  }
  if (!policy.absorbs() || !recipe.rotate) return {};
  return usage_error("kv: rotate=true with {}: its maps are of heads that are not rotated",
                     policy.spec());
}

// A recipe without codecs: what is left of it.
Result<KvRecipe> uncoded(KvRecipe recipe) {
  if (recipe.window != 0 || recipe.rotate || recipe.sinks != 0 || recipe.codes_unturned) {
    return usage_error(
        "kv: window, sinks, rope and rotate are for codecs, and there is no k and no v");
  }
  if (recipe.policy != nullptr) {
    recipe.text = fmt::format("kv(evict={})", recipe.policy->spec());
  } else if (recipe.merge != nullptr) {
    recipe.text = fmt::format("kv(merge={})", recipe.merge->spec());
  } else {
    return usage_error("kv: neither codecs nor a policy nor a rule of merging");
  }
  return recipe;
}

}  // namespace

std::span<const KvPreset> kv_presets() { return kPresets; }

KvRecipe KvRecipe::plain(DType exact) {
  KvRecipe recipe;
  recipe.text = exact == DType::kF32 ? "f32" : exact == DType::kBF16 ? "bf16" : "f16";
  recipe.exact = exact;
  return recipe;
}

Result<KvRecipe> KvRecipe::parse(std::string_view text) {
  if (text == "bf16") return plain(DType::kBF16);
  if (text == "f16") return plain(DType::kF16);
  if (text == "f32") return plain(DType::kF32);
  std::string names = "bf16 f16 f32";
  for (const KvPreset& preset : kPresets) {
    if (preset.name == text) text = preset.text;
    names += fmt::format(" {}", preset.name);
  }
  QUERN_ASSIGN(const spec::Call call, spec::parse_call(text));
  if (call.name != "kv") {
    return usage_error("kv: no cache '{}'; expected {} or kv({})", call.name, names,
                       spec::describe(kParams));
  }
  QUERN_ASSIGN(const spec::Params params, spec::Params::bind(call, kParams));
  const bool has_keys = params.call("k").name != "none";
  if (has_keys != (params.call("v").name != "none")) {
    return usage_error("kv: {} without {}", has_keys ? "k" : "v", has_keys ? "v" : "k");
  }
  KvRecipe recipe;
  recipe.window = params.integer("window");
  recipe.rotate = params.flag("rotate");
  recipe.sinks = params.integer("sinks");
  recipe.codes_unturned = params.word("rope") == "read";
  if (recipe.codes_unturned && recipe.rotate) {
    return usage_error("kv: rope=read and rotate=true: what is rotated has been turned before");
  }
  QUERN_TRY(read_kept(params, has_keys, recipe));
  if (!has_keys) return uncoded(std::move(recipe));
  QUERN_ASSIGN(recipe.keys, make_kv_codec(params.call("k")));
  QUERN_ASSIGN(recipe.values, make_kv_codec(params.call("v")));
  if (recipe.has_tables() && recipe.rotate) {
    return usage_error("kv: {} and {}: tables are of heads that are not rotated",
                       recipe.keys->spec(), recipe.values->spec());
  }
  if (recipe.keys->tables() == KvTables::kOfModel && !recipe.codes_unturned) {
    return usage_error("kv: tables of {} are of keys before RoPE: rope=read", recipe.keys->spec());
  }
  recipe.text = fmt::format("kv({}, {}", recipe.keys->spec(), recipe.values->spec());
  if (recipe.window != 0) recipe.text += fmt::format(", window={}", recipe.window);
  if (recipe.sinks != 0) recipe.text += fmt::format(", sinks={}", recipe.sinks);
  if (recipe.codes_unturned) recipe.text += ", rope=read";
  if (recipe.rotate) recipe.text += ", rotate=true";
  if (recipe.policy != nullptr) {
    QUERN_TRY(check_policy(recipe));
    recipe.text += fmt::format(", evict={}", recipe.policy->spec());
  }
  recipe.text += ")";
  return recipe;
}

double KvRecipe::bits(int64_t d_head) const {
  if (!is_coded()) return static_cast<double>(dtype_bits(exact));
  const int64_t bytes =
      keys->page_bytes(KvSide::kKeys, d_head) + values->page_bytes(KvSide::kValues, d_head);
  return static_cast<double>(bytes) * 8 / static_cast<double>(2 * kKeyBlock * d_head);
}

Status KvRecipe::check(int64_t d_head) const {
  if (exact == DType::kBF16 && d_head % 2 != 0) {
    return error("a cache in bf16 keeps dimensions in pairs, and a head has {}", d_head);
  }
  if (!is_coded()) return {};
  QUERN_TRY(keys->check(KvSide::kKeys, d_head));
  QUERN_TRY(values->check(KvSide::kValues, d_head));
  if (!rotate) return {};
  QUERN_TRY(HadamardPlan::make(d_head));
  return {};
}

}  // namespace quern
