// SPDX-License-Identifier: Apache-2.0
#include "allocate/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "allocate/foretell.h"
#include "base/parallel.h"
#include "calib/gradients.h"
#include "calib/streams.h"
#include "calib/variants.h"
#include "recipe/dense_tensors.h"
#include "recipe/input_groups.h"

namespace quern {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kSampleRows = 64;
constexpr int64_t kProbeTokens = 4096, kLeastProbeTokens = 256;
constexpr double kBitsApart = 0.45;                 // of measured stages that lie on one curve
constexpr size_t kHessianBudget = size_t{2} << 30;  // bytes of Hessians of experts held at once

// What units are coded with to see what their errors do: fine enough for KL to be quadratic, coarse
// enough to stand out from rounding.
constexpr std::string_view kProbe = "ldlq(int(4, group=64))";
// The same where gradients foretell: its errors are independent of each other.
constexpr std::string_view kRoundingProbe = "rtn(int(4, group=64))";

// Every k-th row, at most kSampleRows.
Matrix<float> sample_rows(const Matrix<float>& w) {
  const int64_t n = std::min(kSampleRows, w.rows());
  Matrix<float> sample(n, w.cols());
  for (int64_t i = 0; i < n; ++i) {
    std::copy_n(w.row((2 * i + 1) * w.rows() / (2 * n)), w.cols(), sample.row(i));
  }
  return sample;
}

Result<CurvePoint> code_sample(const Solver& solver, const SolveInput& input) {
  const auto start = Clock::now();
  QUERN_ASSIGN(CodedMatrix codes, CodedMatrix::create(solver.codec(), input.w.rows, input.w.cols));
  QUERN_ASSIGN(const SolveReport report, solver.solve(input, codes));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return CurvePoint{report.relative(), seconds / static_cast<double>(input.w.rows * input.w.cols)};
}

int64_t probe_tokens(const ModelDesc& desc, size_t n_units, size_t budget) {
  const size_t row = n_units * static_cast<size_t>(desc.d_model) * sizeof(float);
  const auto fit = static_cast<int64_t>(budget / row);
  return std::clamp(fit, kLeastProbeTokens, kProbeTokens);
}

// What stages of one curve have in common.
std::string family(const Solver& solver) {
  const std::string text = solver.spec(), codec = solver.codec().spec();
  return text.substr(0, text.find('(')) + " " + codec.substr(0, codec.find('('));
}

// The stages that can code a unit, those of one curve together, by rising bytes.
std::map<std::string, std::vector<size_t>> curves_of_menu(const Prepared& prepared,
                                                          const Unit& unit) {
  const std::vector<MixEntry>& menu = prepared.recipe.mix()->menu;
  std::map<std::string, std::vector<size_t>> families;
  for (size_t i = 0; i < menu.size(); ++i) {
    if (menu[i].solver == nullptr || unit.bytes[i] == 0) continue;
    families[family(*menu[i].solver)].push_back(i);
  }
  for (auto& [name, stages] : families) {
    std::stable_sort(stages.begin(), stages.end(),
                     [&](size_t a, size_t b) { return unit.bytes[a] < unit.bytes[b]; });
  }
  return families;
}

// The stages to be measured of which the curves know nothing.
std::vector<const MixEntry*> missing_stages(const Prepared& prepared, const Unit& unit,
                                            const Curves& curves) {
  const std::vector<MixEntry>& menu = prepared.recipe.mix()->menu;
  const std::vector<bool> wanted = measured_stages(prepared, unit);
  const auto known = curves.units.find(unit.name);
  std::vector<const MixEntry*> stages;
  for (size_t i = 0; i < menu.size(); ++i) {
    const bool is_known =
        known != curves.units.end() && known->second.points.contains(menu[i].text);
    if (wanted[i] && !is_known) stages.push_back(&menu[i]);
  }
  return stages;
}

bool is_complete(const Prepared& prepared, const Unit& unit, const Curves& curves) {
  const auto known = curves.units.find(unit.name);
  return known != curves.units.end() && known->second.probe_kl >= 0 &&
         missing_stages(prepared, unit, curves).empty();
}

Result<std::unique_ptr<Solver>> make_probe(const Prepared& prepared) {
  const bool foretells = prepared.recipe.mix()->sensitivity == Sensitivity::kGradients;
  return make_solver(*spec::parse_call(foretells ? kRoundingProbe : kProbe));
}

// From gradients, for all units at once.
Status foretell(const Prepared& prepared, const std::vector<Unit>& units, const Corpus& corpus,
                const MeasureOptions& options, Curves& curves) {
  const auto is_known = [&](const Unit& unit) { return curves.units[unit.name].probe_kl >= 0; };
  if (std::all_of(units.begin(), units.end(), is_known)) return {};
  const Corpus part = gradient_part(prepared.fused->desc(), corpus);
  QUERN_ASSIGN(const auto probe, make_probe(prepared));
  return foretell_probes(prepared, units, part, *probe, options, curves);
}

class Measurement {
 public:
  Measurement(const Prepared& prepared, const std::vector<Unit>& units, const Corpus& corpus,
              const MeasureOptions& options, Curves& curves)
      : prepared_(prepared),
        units_(units),
        options_(options),
        curves_(curves),
        desc_(prepared.fused->desc()),
        corpus_(corpus),
        probe_corpus_(
            first_tokens(corpus, probe_tokens(desc_, units.size(), options.probe_budget))),
        runs_(desc_, corpus_) {}

  Status run() {
    QUERN_ASSIGN(probe_, make_probe(prepared_));
    QUERN_ASSIGN(ends_, prepared_.fused->ends());
    clean_ = runs_.embed(ends_);
    const auto is_unknown = [&](const Unit& unit) { return curves_.units[unit.name].probe_kl < 0; };
    if (std::any_of(units_.begin(), units_.end(), is_unknown)) {
      variants_.emplace(desc_, probe_corpus_, ends_);
    }
    QUERN_TRY(measure_end(Role::kEmbed, {}));
    for (int layer = 0; layer < n_layers(); ++layer) QUERN_TRY(measure_layer(layer));
    Matrix<float> hidden = clean_;
    finish_hidden(desc_, ends_, hidden.view());
    GramTap tap(Role::kLmHead, -1, -1);
    if (find_unit(Role::kLmHead, -1) != nullptr) tap.input(Role::kLmHead, -1, hidden.view());
    QUERN_TRY(measure_end(Role::kLmHead, tap.hessian(-1)));
    if (variants_) QUERN_TRY(compare_probes());
    return save();
  }

 private:
  int n_layers() const { return static_cast<int>(desc_.layers.size()); }

  // The stages that are to be measured, and are not yet.
  std::vector<const MixEntry*> missing(const Unit& unit) const {
    return missing_stages(prepared_, unit, curves_);
  }

  Status save() const { return options_.path.empty() ? Status() : curves_.save(options_.path); }

  // `what` is under way in a layer, or at n_layers() behind them.
  bool proceed(int layer, const char* what) const {
    const double done = static_cast<double>(layer + 1) / (n_layers() + 2);
    return options_.observe({{"event", "progress"}, {"what", what}, {"done", done}});
  }

  const Unit* find_unit(Role role, int layer) const {
    for (const Unit& unit : units_) {
      for (const WeightId& id : unit.weights) {
        if (id.role == role && id.layer == layer) return &unit;
      }
    }
    return nullptr;
  }
  const Unit* unit_of(const WeightId& id) const {
    for (const Unit& unit : units_) {
      if (std::find(unit.weights.begin(), unit.weights.end(), id) != unit.weights.end()) {
        return &unit;
      }
    }
    return nullptr;
  }

  // Codes a sample of a matrix by every stage that is missing, and by the probe.
  Status measure_sample(const Unit& unit, const Matrix<float>& w,
                        MatrixView<const double> hessian) {
    UnitCurve& curve = curves_.units[unit.name];
    const std::vector<const MixEntry*> stages = missing(unit);
    const Matrix<float> sample = sample_rows(w);
    const SolveInput input{sample.view(), hessian};
    if (curve.probe_loss == 0) {
      QUERN_ASSIGN(const CurvePoint point, code_sample(*probe_, input));
      curve.probe_loss = point.loss;
    }
    std::vector<Result<CurvePoint>> points(stages.size(), CurvePoint{});
    parallel_for(static_cast<int64_t>(stages.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        points[at] = code_sample(*stages[at]->solver, input);
      }
    });
    for (size_t i = 0; i < stages.size(); ++i) {
      if (!points[i]) return tl::unexpected(in_context(points[i].error(), unit.name));
      CurvePoint& into = curve.points[stages[i]->text];
      into = *points[i];
      into.seconds /= thread_count();  // each had one of them
    }
    return {};
  }

  Result<LinearWeight> code_by_probe(const WeightId& id, const Matrix<float>& w,
                                     MatrixView<const double> hessian) {
    QUERN_ASSIGN(CodedMatrix codes, CodedMatrix::create(probe_->codec(), w.rows(), w.cols()));
    const auto solved = probe_->solve({w.view(), hessian}, codes);
    if (!solved) return tl::unexpected(in_context(solved.error(), to_string(id)));
    QUERN_ASSIGN(std::vector<float> bias, prepared_.fused->bias(id));
    return coded_weight(std::move(codes), probe_->codec(), std::move(bias));
  }

  Status measure_end(Role role, MatrixView<const double> hessian) {
    const Unit* unit = find_unit(role, -1);
    if (unit == nullptr) return {};
    if (!proceed(role == Role::kEmbed ? -1 : n_layers(), "measure the ends")) return cancelled();
    const WeightId& id = unit->weights[0];
    QUERN_ASSIGN(const Matrix<float> w, prepared_.fused->weight(id));
    QUERN_TRY(check_finite(w, id));
    QUERN_TRY(measure_sample(*unit, w, hessian));
    if (curves_.units[unit->name].probe_kl >= 0) return {};
    EndWeights ends = ends_;
    QUERN_ASSIGN(LinearWeight coded, code_by_probe(id, w, hessian));
    if (role == Role::kLmHead || desc_.tied_head) {
      ends.head = coded;
      ends.head.bias = ends_.head.bias;
    }
    if (role == Role::kEmbed) ends.embed = std::move(coded);
    variants_->add_ends(std::move(ends));
    probed_.push_back(unit);
    return {};
  }

  Status measure_layer(int layer) {
    QUERN_ASSIGN(const LayerWeights weights, prepared_.fused->layer(layer));
    const auto go = [&] { return proceed(layer, "measure the layers"); };
    std::map<WeightId, LinearWeight> probes;
    for (const InputGroup& group : kInputGroups) {
      QUERN_TRY(measure_group(layer, group, weights, probes));
    }
    for (const Unit& unit : units_) {
      if (unit.weights[0].layer != layer || curves_.units[unit.name].probe_kl >= 0) continue;
      LayerWeights changed = weights;
      for (const WeightId& id : unit.weights) {
        changed.at(id.role, id.expert) = std::move(probes.at(id));
      }
      if (!variants_->add_layer(layer, changed, go)) return cancelled();
      probed_.push_back(&unit);
    }
    if (variants_ && !variants_->advance(layer, weights, go)) return cancelled();
    if (!runs_.advance(layer, weights, clean_, go)) return cancelled();
    for (const WeightId& id : prepared_.files->store().weight_ids()) {
      if (id.layer != layer) continue;
      const WeightStore& store = prepared_.files->store();
      store.checkpoint().release(store.stored(id));
    }
    return save();
  }

  // The matrices of one group of a layer: of experts a few at a time, and samples of the first.
  Status measure_group(int layer, const InputGroup& group, const LayerWeights& weights,
                       std::map<WeightId, LinearWeight>& probes) {
    std::vector<WeightId> members;
    for (const Unit& unit : units_) {
      for (const WeightId& id : unit.weights) {
        const bool is_needed = curves_.units[unit.name].probe_kl < 0 || !missing(unit).empty();
        if (id.layer == layer && group.has(id.role) && is_needed) members.push_back(id);
      }
    }
    if (members.empty()) return {};
    const int64_t n_experts = desc_.layers[static_cast<size_t>(layer)].mlp.n_experts;
    const bool is_split = group.is_per_expert && n_experts > 0;
    const int first = is_split ? 0 : -1;
    const int last = is_split ? static_cast<int>(n_experts) - 1 : -1;
    const auto n_in = static_cast<size_t>(weight_shape(desc_, members[0])[1]);
    const int at_once =
        static_cast<int>(std::max<size_t>(1, kHessianBudget / (n_in * n_in * sizeof(double))));
    for (int e = first; e <= last; e += at_once) {
      GramTap tap(group.shown, e, std::min(last, e + at_once - 1));
      const auto go = [&] { return proceed(layer, "collect statistics"); };
      if (!runs_.observe(layer, weights, clean_, tap, go)) return cancelled();
      for (const WeightId& id : members) {
        if (id.expert < e || id.expert >= e + at_once) continue;
        if (!proceed(layer, "measure the layers")) return cancelled();
        const Unit& unit = *unit_of(id);
        QUERN_ASSIGN(const Matrix<float> w, prepared_.fused->weight(id));
        QUERN_TRY(check_finite(w, id));
        const MatrixView<const double> hessian = tap.hessian(id.expert);
        if (id == unit.weights[0]) QUERN_TRY(measure_sample(unit, w, hessian));
        if (curves_.units[unit.name].probe_kl >= 0) continue;
        QUERN_ASSIGN(probes[id], code_by_probe(id, w, hessian));
      }
    }
    return {};
  }

  Status compare_probes() {
    const auto go = [this] { return proceed(n_layers(), "compare the probes"); };
    QUERN_ASSIGN(const std::vector<double> divergences, variants_->divergences(go));
    for (size_t i = 0; i < probed_.size(); ++i) {
      if (!std::isfinite(divergences[i])) {
        return error("{}: the model's output is not finite with this unit at 4 bits",
                     probed_[i]->name);
      }
      curves_.units[probed_[i]->name].probe_kl = divergences[i];
    }
    return {};
  }

  const Prepared& prepared_;
  const std::vector<Unit>& units_;
  const MeasureOptions& options_;
  Curves& curves_;
  const ModelDesc& desc_;
  const Corpus& corpus_;
  Corpus probe_corpus_;
  SampleRuns runs_;
  std::unique_ptr<Solver> probe_;
  EndWeights ends_;
  Matrix<float> clean_;               // of all samples
  std::optional<Variants> variants_;  // on the probe's tokens: a unit each coded by the probe
  std::vector<const Unit*> probed_;   // the units of the variants
};

}  // namespace

Status measure_curves(const Prepared& prepared, const std::vector<Unit>& units,
                      const CorpusSource& corpus, const MeasureOptions& options, Curves& curves) {
  const bool has_all = std::all_of(units.begin(), units.end(), [&](const Unit& unit) {
    return is_complete(prepared, unit, curves);
  });
  if (has_all) return {};
  QUERN_ASSIGN(const Corpus* samples, corpus());
  if (prepared.recipe.mix()->sensitivity == Sensitivity::kGradients) {
    QUERN_TRY(foretell(prepared, units, *samples, options, curves));
  }
  return Measurement(prepared, units, *samples, options, curves).run();
}

std::vector<bool> measured_stages(const Prepared& prepared, const Unit& unit) {
  std::vector<bool> wanted(unit.bytes.size(), false);
  for (const auto& [name, stages] : curves_of_menu(prepared, unit)) {
    double last = -kBitsApart;
    for (const size_t stage : stages) {
      if (stage != stages.back() && unit.bits(stage) < last + kBitsApart) continue;
      wanted[stage] = true;
      last = unit.bits(stage);
    }
  }
  return wanted;
}

std::vector<CurvePoint> interpolate(const Prepared& prepared, const Unit& unit,
                                    const UnitCurve& curve) {
  const std::vector<MixEntry>& menu = prepared.recipe.mix()->menu;
  std::vector<CurvePoint> points(menu.size());
  for (size_t i = 0; i < menu.size(); ++i) {
    if (unit.bytes[i] == 0) points[i].loss = -1;
  }
  for (const auto& entry : curves_of_menu(prepared, unit)) {
    const std::vector<size_t>& stages = entry.second;
    for (size_t s = 0; s < stages.size(); ++s) {
      const auto find = [&](size_t at) {
        const auto it = curve.points.find(menu[stages[at]].text);
        return it == curve.points.end() ? nullptr : &it->second;
      };
      CurvePoint& point = points[stages[s]];
      if (const CurvePoint* own = find(s); own != nullptr) {
        point = *own;
        continue;
      }
      size_t below = s, above = s;
      while (find(below) == nullptr) --below;  // the ends are measured
      while (find(above) == nullptr) ++above;
      const double low = unit.bits(stages[below]), high = unit.bits(stages[above]);
      const double share = high > low ? (unit.bits(stages[s]) - low) / (high - low) : 0;
      const auto mix = [share](double a, double b) {
        constexpr double kTiny = 1e-300;
        return std::exp((1 - share) * std::log(a + kTiny) + share * std::log(b + kTiny));
      };
      point.loss = mix(find(below)->loss, find(above)->loss);
      point.seconds = mix(find(below)->seconds, find(above)->seconds);
    }
  }
  return points;
}

}  // namespace quern
