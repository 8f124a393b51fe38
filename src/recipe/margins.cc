// SPDX-License-Identifier: Apache-2.0
#include "recipe/margins.h"

#include <algorithm>
#include <numeric>

#include "calib/gradients.h"

namespace quern {
namespace {

class MarginVisitor final : public GradientVisitor {
 public:
  explicit MarginVisitor(const OutputPlan& plan) {
    for (const WeightPlan& weight : plan.weights()) {
      if (weight.solver != nullptr && weight.solver->needs_gradients()) sums_[weight.id];
    }
  }
  bool wants_any() const { return !sums_.empty(); }

  void linear(const WeightId& id, MatrixView<const float> x, MatrixView<const float> dy) override {
    // A tied head's do not weigh the embedding: by them rare tokens get no bits, and a model of 2
    // bits has 1.4 times the divergence.
    const auto found = sums_.find(id);
    if (found != sums_.end()) found->second.add(x, dy);
  }

  std::map<WeightId, Margins> margins() const {
    std::map<WeightId, Margins> all;
    for (const auto& [id, sums] : sums_) {
      if (!sums.rows.empty()) all[id] = {shares(sums.rows), shares(sums.columns)};
    }
    return all;
  }

 private:
  static std::vector<float> shares(const std::vector<double>& sums) {
    const double mean =
        std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(sums.size());
    std::vector<float> shares(sums.size(), 1.0f);
    for (size_t i = 0; i < sums.size() && mean > 0; ++i) {
      shares[i] = static_cast<float>(std::max(0.0, sums[i]) / mean);
    }
    return shares;
  }

  std::map<WeightId, GradientMargins> sums_;
};

}  // namespace

Result<std::map<WeightId, Margins>> gather_margins(const Prepared& prepared, const OutputPlan& plan,
                                                   const Corpus& corpus, uint64_t seed,
                                                   const std::function<bool(double)>& proceed) {
  MarginVisitor visitor(plan);
  if (!visitor.wants_any()) return std::map<WeightId, Margins>();
  if (prepared.recipe.is_fitted()) {
    return usage_error(
        "recipe: gradients are taken before any layer is run, in a basis that needs no data; "
        "rotate "
        "is such a transform");
  }
  GradientOptions options;
  options.seed = seed;
  options.proceed = proceed;
  const Corpus part = gradient_part(prepared.fused->desc(), corpus);
  QUERN_TRY(visit_gradients(*prepared.fused, part, options, visitor));
  return visitor.margins();
}

}  // namespace quern
