// SPDX-License-Identifier: Apache-2.0
#include "allocate/kv_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>

#include "allocate/choose.h"
#include "allocate/curves.h"
#include "allocate/kv_measure.h"
#include "base/digest.h"
#include "base/file.h"
#include "kernels/hadamard.h"
#include "tokenizer/tokenizer.h"

namespace quern {
namespace {

// Fine enough for KL to be quadratic, coarse enough to stand out from rounding.
constexpr std::string_view kProbe = "int(3, group=16)";

// The menu where none is given, rotated where heads can be.
constexpr std::string_view kMenu[] = {"lloyd(1)", "lloyd(2)", "lloyd(3)",
                                      "lloyd(4)", "int(4)",   "int(8)"};

// Codecs that share all else of their recipe: any of the keys goes with any of the values.
struct Family {
  std::string rest;  // of the recipe's text: ", rotate=true"
  std::vector<std::string> keys, values;
};

// What keeps one layer, and its expected cost.
struct Option {
  std::string kept;
  Choice choice;
};

void add_once(std::vector<std::string>& list, const std::string& text) {
  if (std::find(list.begin(), list.end(), text) == list.end()) list.push_back(text);
}

std::string rest_of(const KvRecipe& kept) {
  const spec::Call call = *spec::parse_call(kept.text);  // keys and values come first
  std::string rest;
  for (size_t i = 2; i < call.args.size(); ++i) {
    rest += fmt::format(", {}={}", call.args[i].name, spec::print(call.args[i].value));
  }
  return rest;
}

std::string text_of(const std::string& keys, const std::string& values, const std::string& rest) {
  return fmt::format("kv({}, {}{})", keys, values, rest);
}
// With one side coded alone.
std::string text_of(KvSide side, const std::string& codec, const std::string& rest) {
  return side == KvSide::kKeys ? text_of(codec, "f16", rest) : text_of("f16", codec, rest);
}

std::string unit_name(KvSide side, size_t layer) {
  return fmt::format("{}[{}:{}]", side == KvSide::kKeys ? "k" : "v", layer, layer + 1);
}

std::vector<KvRecipe> usual_menu(const ModelDesc& model) {
  const bool rotates =
      std::all_of(model.layers.begin(), model.layers.end(), [](const LayerDesc& layer) {
        return HadamardPlan::make(layer.attention.d_head).has_value();
      });
  std::vector<KvRecipe> menu;
  for (const std::string_view codec : kMenu) {
    const std::string one(codec);
    menu.push_back(*KvRecipe::parse(text_of(one, one, rotates ? ", rotate=true" : "")));
  }
  return menu;
}

class KvPlanning {
 public:
  KvPlanning(const Model& model, const KvMix& mix, const KvPlanOptions& options)
      : model_(model),
        mix_(mix),
        options_(options),
        menu_(mix.menu.empty() ? usual_menu(model.desc()) : mix.menu) {}

  Result<KvPlan> run() {
    QUERN_TRY(gather_families());
    QUERN_TRY(gather_costs());
    for (size_t layer = 0; layer < n_layers(); ++layer) {
      QUERN_ASSIGN(std::vector<Option> options, options_of(layer));
      options_of_layers_.push_back(std::move(options));
    }
    return plan();
  }

 private:
  size_t n_layers() const { return model_.desc().layers.size(); }
  const AttentionDesc& attention(size_t layer) const {
    return model_.desc().layers[layer].attention;
  }

  Status gather_families() {
    for (const KvRecipe& kept : menu_) {
      if (!kept.is_coded() || kept.policy != nullptr || kept.n_queries() > 0) {
        return usage_error("kv: auto: {}: expected codecs whose pages have one size, and no policy",
                           kept.text);
      }
      for (const LayerDesc& layer : model_.desc().layers) {
        QUERN_TRY(kept.check(layer.attention.d_head));
      }
      const std::string rest = rest_of(kept);
      auto found = std::find_if(families_.begin(), families_.end(),
                                [&](const Family& family) { return family.rest == rest; });
      if (found == families_.end()) found = families_.insert(found, {rest, {}, {}});
      add_once(found->keys, kept.keys->spec());
      add_once(found->values, kept.values->spec());
    }
    return {};
  }

  // Visits every side of every layer with what may keep it, the probe first.
  template <class Visit>
  Status for_variants(const Visit& visit) {
    for (size_t layer = 0; layer < n_layers(); ++layer) {
      for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
        QUERN_TRY(visit(layer, side, text_of(side, std::string(kProbe), "")));
        for (const Family& family : families_) {
          for (const std::string& codec : side == KvSide::kKeys ? family.keys : family.values) {
            QUERN_TRY(visit(layer, side, text_of(side, codec, family.rest)));
          }
        }
      }
    }
    return {};
  }

  // Known costs, and what of them is missing measured.
  Status gather_costs() {
    QUERN_ASSIGN(const std::string text, calibration_text());
    const std::string key = digest_of(
        fmt::format("{}|{}|{}|{}|{}|{}", model_.files().digest(), text, options_.corpus.n_samples,
                    options_.corpus.length, options_.corpus.seed, QUERN_VERSION));
    const std::string path =
        options_.folder.empty() ? "" : fmt::format("{}/kv-curves-{}.json", options_.folder, key);
    curves_.key = key;
    if (!path.empty()) {
      QUERN_ASSIGN(curves_, Curves::load(path, key));
    }
    std::vector<KvVariant> missing;
    std::vector<KvSide> sides;
    const std::string probe(kProbe);
    QUERN_TRY(for_variants([&](size_t layer, KvSide side, const std::string& kept) -> Status {
      const auto unit = curves_.units.find(unit_name(side, layer));
      if (unit != curves_.units.end() && unit->second.points.contains(kept)) return {};
      QUERN_ASSIGN(KvRecipe recipe, KvRecipe::parse(kept));
      missing.push_back({layer, std::move(recipe), kept == text_of(side, probe, "")});
      sides.push_back(side);
      return {};
    }));
    if (missing.empty()) return {};
    QUERN_ASSIGN(const Corpus corpus, gather_corpus(text));
    const auto proceed = [this](double done) {
      return options_.proceed(done, "measure the layers' caches");
    };
    QUERN_ASSIGN(const auto costs, measure_kv(model_, corpus, missing, proceed));
    for (size_t i = 0; i < missing.size(); ++i) {
      UnitCurve& unit = curves_.units[unit_name(sides[i], missing[i].layer)];
      unit.points[missing[i].kept.text] = {costs[i].loss, 0};
      if (!missing[i].is_probe) continue;
      unit.probe_kl = costs[i].kl;
      unit.probe_loss = costs[i].loss;
    }
    return path.empty() ? Status() : curves_.save(path);
  }

  Result<std::string> calibration_text() const {
    if (options_.calibration.empty()) return std::string();
    return read_file(options_.calibration);
  }

  Result<Corpus> gather_corpus(const std::string& text) const {
    CorpusOptions options = options_.corpus;
    options.length = std::min(options.length, model_.desc().n_context);
    if (options_.calibration.empty()) {
      return corpus_from_model(model_, options, [this](double done) {
        return options_.proceed(done, "draw calibration text");
      });
    }
    QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(model_.files().path()));
    return corpus_from_text(model_.desc(), *tokenizer, text, options_.calibration, options);
  }

  // Of the model's output, where one side of a layer is kept so.
  double expected_kl(KvSide side, size_t layer, const std::string& kept) const {
    const UnitCurve& unit = curves_.units.at(unit_name(side, layer));
    const double slope = unit.probe_loss > 0 ? unit.probe_kl / unit.probe_loss : 0;
    return slope * unit.points.at(kept).loss;
  }

  // What a layer may be kept as, by rising bytes, without what another beats (the Pareto front).
  Result<std::vector<Option>> options_of(size_t layer) const {
    std::vector<Option> all;
    for (const Family& family : families_) {
      for (const std::string& keys : family.keys) {
        for (const std::string& values : family.values) {
          QUERN_ASSIGN(const KvRecipe kept, KvRecipe::parse(text_of(keys, values, family.rest)));
          all.push_back({kept.text, cost_of(layer, kept)});
        }
      }
    }
    std::stable_sort(all.begin(), all.end(), [](const Option& a, const Option& b) {
      if (a.choice.bytes != b.choice.bytes) return a.choice.bytes < b.choice.bytes;
      return a.choice.cost < b.choice.cost;
    });
    std::vector<Option> front;
    for (Option& option : all) {
      if (front.empty() || option.choice.cost < front.back().choice.cost) {
        front.push_back(std::move(option));
      }
    }
    return front;
  }

  // A page of every head of a layer, and what keeping the layer so is expected to cost.
  Choice cost_of(size_t layer, const KvRecipe& kept) const {
    const AttentionDesc& a = attention(layer);
    const int64_t bytes = a.n_kv_heads * (kept.keys->page_bytes(KvSide::kKeys, a.d_head) +
                                          kept.values->page_bytes(KvSide::kValues, a.d_head));
    const std::string rest = rest_of(kept);
    double kl = 0;
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      const KvCodec& codec = side == KvSide::kKeys ? *kept.keys : *kept.values;
      kl += expected_kl(side, layer, text_of(side, codec.spec(), rest));
    }
    return {static_cast<uint64_t>(bytes), kl};
  }

  // One of the menu for all layers; `start` <- of every layer the option that beats it, or is it.
  Totals uniform(const KvRecipe& kept, std::vector<int>& start) const {
    Totals sum;
    for (size_t layer = 0; layer < n_layers(); ++layer) {
      const Choice one = cost_of(layer, kept);
      sum.bytes += one.bytes;
      sum.cost += one.cost;
      const std::vector<Option>& options = options_of_layers_[layer];
      int n = 0;
      for (const Option& option : options) n += option.choice.bytes <= one.bytes ? 1 : 0;
      start.push_back(n - 1);
    }
    return sum;
  }

  Result<KvPlan> plan() const {
    ChoicesOfUnits choices;
    uint64_t least = 0;
    double numbers = 0;
    for (size_t layer = 0; layer < n_layers(); ++layer) {
      std::vector<Choice>& of_layer = choices.emplace_back();
      for (const Option& option : options_of_layers_[layer]) of_layer.push_back(option.choice);
      least += of_layer[0].bytes;
      numbers += static_cast<double>(2 * kKeyBlock * attention(layer).n_kv_heads *
                                     attention(layer).d_head);
    }
    const auto bits = [&](uint64_t bytes) { return static_cast<double>(bytes) * 8 / numbers; };
    const auto budget = static_cast<uint64_t>(std::floor(mix_.bits * numbers / 8));
    if (least > budget) {
      return usage_error("kv: auto: {} bits are too few, the least of the menu are {:.3f}",
                         mix_.bits, bits(least));
    }
    std::vector<std::vector<int>> starts;
    KvPlan plan;
    plan.uniform_kl = std::numeric_limits<double>::infinity();
    for (const KvRecipe& kept : menu_) {
      std::vector<int> start;
      const Totals sum = uniform(kept, start);
      if (sum.bytes > budget) continue;
      starts.push_back(std::move(start));
      if (sum.cost >= plan.uniform_kl) continue;
      plan.uniform = kept.text;
      plan.uniform_bits = bits(sum.bytes);
      plan.uniform_kl = sum.cost;
    }
    QUERN_ASSIGN(const std::vector<int> chosen, choose(choices, budget, starts));
    std::vector<KvRecipe> kept;
    for (size_t layer = 0; layer < n_layers(); ++layer) {
      const Option& option = options_of_layers_[layer][static_cast<size_t>(chosen[layer])];
      QUERN_ASSIGN(KvRecipe one, KvRecipe::parse(option.kept));
      kept.push_back(std::move(one));
    }
    const Totals sum = totals(choices, chosen);
    plan.recipe = KvCacheRecipe::of_layers(kept);
    plan.bits = bits(sum.bytes);
    plan.kl = sum.cost;
    return plan;
  }

  const Model& model_;
  const KvMix& mix_;
  const KvPlanOptions& options_;
  std::vector<KvRecipe> menu_;
  std::vector<Family> families_;
  Curves curves_;
  std::vector<std::vector<Option>> options_of_layers_;
};

}  // namespace

Result<KvPlan> plan_kv(const Model& model, const KvMix& mix, const KvPlanOptions& options) {
  return KvPlanning(model, mix, options).run();
}

}  // namespace quern
