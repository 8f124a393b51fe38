// SPDX-License-Identifier: Apache-2.0
#include "allocate/allocate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "base/digest.h"

namespace quern {
namespace {

constexpr int kSizeTrials = 8;  // the header's size depends on the plan, a little

uint64_t added(uint64_t a, int64_t b) {
  return b < 0 && a < static_cast<uint64_t>(-b) ? 0 : a + static_cast<uint64_t>(b);
}

}  // namespace

std::string curves_key(const Prepared& prepared, uint64_t seed, const std::string& calibration) {
  std::string basis;
  for (const auto& transform : prepared.recipe.transforms()) basis += transform->spec() + " | ";
  if (prepared.recipe.mix()->sensitivity == Sensitivity::kGradients) basis += "gradients";
  return digest_of(fmt::format("{}|{}|{}|{}|{}", prepared.files->digest(), basis, calibration, seed,
                               QUERN_VERSION));
}

Result<Allocation> Allocation::make(const Prepared& prepared, const Sources& sources) {
  Allocation made(prepared);
  QUERN_ASSIGN(made.units_, units_of(prepared));
  Curves curves;
  curves.key = sources.key;
  if (!sources.path.empty()) {
    QUERN_ASSIGN(curves, Curves::load(sources.path, sources.key));
  }
  MeasureOptions options;
  options.path = sources.path;
  options.observe = sources.observe;
  QUERN_TRY(measure_curves(prepared, made.units_, sources.corpus, options, curves));
  made.tabulate(curves);
  return made;
}

void Allocation::tabulate(const Curves& curves) {
  for (const Unit& unit : units_) {
    const UnitCurve& curve = curves.units.at(unit.name);
    const std::vector<CurvePoint> points = interpolate(*prepared_, unit, curve);
    std::vector<size_t> order;
    for (size_t stage = 0; stage < points.size(); ++stage) {
      if (points[stage].loss >= 0) order.push_back(stage);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return unit.bytes[a] < unit.bytes[b]; });
    const double slope = curve.probe_loss > 0 ? curve.probe_kl / curve.probe_loss : 0;
    std::vector<Choice> choices;
    std::vector<Option> options;
    for (const size_t stage : order) {
      choices.push_back({unit.bytes[stage], slope * points[stage].loss});
      options.push_back({stage, points[stage].seconds * static_cast<double>(unit.n_weights)});
    }
    choices_.push_back(std::move(choices));
    options_.push_back(std::move(options));
  }
}

int Allocation::choice_of(size_t unit, size_t stage) const {
  const std::vector<Option>& options = options_[unit];
  const auto found = std::find_if(options.begin(), options.end(),
                                  [stage](const Option& option) { return option.stage == stage; });
  return found == options.end() ? -1 : static_cast<int>(found - options.begin());
}

std::vector<std::vector<int>> Allocation::uniform_choices() const {
  const size_t n = prepared_->recipe.mix()->menu.size();
  const bool has_ends = std::any_of(units_.begin(), units_.end(),
                                    [](const Unit& unit) { return unit.weights[0].layer < 0; });
  std::vector<std::vector<int>> all;
  for (size_t of_layers = 0; of_layers < n; ++of_layers) {
    for (size_t of_ends = 0; of_ends < (has_ends ? n : 1); ++of_ends) {
      std::vector<int> chosen;
      for (size_t u = 0; u < units_.size(); ++u) {
        chosen.push_back(choice_of(u, units_[u].weights[0].layer < 0 ? of_ends : of_layers));
      }
      if (std::find(chosen.begin(), chosen.end(), -1) == chosen.end()) all.push_back(chosen);
    }
  }
  return all;
}

Result<Plan> Allocation::plan_of(const std::vector<int>& chosen) const {
  Plan plan;
  plan.recipe = prepared_->recipe.canonical();
  plan.source_digest = prepared_->files->digest();
  plan.kl = plan.seconds = 0;
  for (size_t u = 0; u < units_.size(); ++u) {
    const auto c = static_cast<size_t>(chosen[u]);
    const Option& option = options_[u][c];
    PlanRow row;
    row.unit = units_[u].name;
    row.stage = prepared_->recipe.mix()->menu[option.stage].text;
    row.kl = choices_[u][c].cost;
    row.seconds = option.seconds;
    plan.kl += row.kl;
    plan.seconds += row.seconds;
    plan.rows.push_back(std::move(row));
  }
  QUERN_TRY(finish_plan(*prepared_, units_, plan));
  return plan;
}

Result<Plan> Allocation::within_bytes(uint64_t budget) const {
  std::vector<int> least(units_.size(), 0);
  QUERN_ASSIGN(const Plan smallest, plan_of(least));
  if (smallest.bytes > budget) {
    return usage_error("{} bytes are too few: the smallest plan of this mix takes {}", budget,
                       smallest.bytes);
  }
  const std::vector<std::vector<int>> starts = uniform_choices();
  int64_t beside = static_cast<int64_t>(smallest.bytes - totals(choices_, least).bytes);
  std::optional<Plan> best;
  for (int i = 0; i < kSizeTrials; ++i) {
    const auto chosen = choose(choices_, added(budget, -beside), starts);
    if (!chosen) break;
    QUERN_ASSIGN(Plan plan, plan_of(*chosen));
    const auto now = static_cast<int64_t>(plan.bytes - totals(choices_, *chosen).bytes);
    if (plan.bytes <= budget) {
      if (!best || plan.kl < best->kl) best = std::move(plan);
      if (now >= beside) break;
    }
    beside = now;
  }
  return best ? *best : smallest;
}

Result<Plan> Allocation::within_bits(double bits) const {
  double weights = 0;
  for (const Unit& unit : units_) weights += static_cast<double>(unit.n_weights);
  const auto budget = static_cast<uint64_t>(std::floor(bits * weights / 8));
  QUERN_ASSIGN(const std::vector<int> chosen, choose(choices_, budget, uniform_choices()));
  return plan_of(chosen);
}

Result<Plan> Allocation::within_kl(double kl) const {
  uint64_t low = 0, high = 0;
  for (const auto& choices : choices_) {
    low += choices.front().bytes;
    high += choices.back().bytes;
  }
  const auto cost_within = [&](uint64_t budget) {
    const auto chosen = choose(choices_, budget);
    return chosen ? totals(choices_, *chosen).cost : std::numeric_limits<double>::infinity();
  };
  if (cost_within(high) > kl) {
    return usage_error("no plan of this mix is expected to diverge by {} or less; the best by {}",
                       kl, cost_within(high));
  }
  while (high - low > high / 10000) {
    const uint64_t middle = low + (high - low) / 2;
    (cost_within(middle) <= kl ? high : low) = middle;
  }
  QUERN_ASSIGN(const std::vector<int> chosen, choose(choices_, high));
  return plan_of(chosen);
}

Result<Plan> Allocation::uniform_within_bytes(uint64_t budget) const {
  const std::vector<std::vector<int>> all = uniform_choices();
  std::vector<size_t> order(all.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return totals(choices_, all[a]).cost < totals(choices_, all[b]).cost;
  });
  for (const size_t i : order) {
    if (totals(choices_, all[i]).bytes > budget) continue;
    QUERN_ASSIGN(Plan plan, plan_of(all[i]));
    if (plan.bytes <= budget) return plan;
  }
  return error("no uniform plan of this mix fits {} bytes", budget);
}

}  // namespace quern
