// SPDX-License-Identifier: Apache-2.0
#include "calib/group_inputs.h"

#include <utility>

namespace quern {
namespace {

constexpr double kDriftDamping = 0.01;

}  // namespace

void GroupInputs::decide_roundings() {
  if (wanted_.act == nullptr) return;
  for (int e = wanted_.first_expert; e <= wanted_.last_expert; ++e) {
    roundings_[e] = is_static() ? ranges_.rounding(wanted_.act, e)
                                : std::make_shared<const ActRounding>(ActRounding{wanted_.act, {}});
    tap_.round(e, roundings_[e]);
  }
}

bool GroupInputs::gather(const Streams* streams, int layer, const LayerWeights& source,
                         const LayerWeights& coded, const std::function<bool()>& proceed) {
  if (is_static() && !streams->observe(layer, coded, ranges_, proceed)) return false;
  decide_roundings();
  if (!wanted_.hessian && !wanted_.mean) return true;
  return wanted_.drift ? streams->observe_drift(layer, source, coded, wanted_.shown, tap_, proceed)
                       : streams->observe(layer, coded, tap_, proceed);
}

void GroupInputs::gather(MatrixView<const float> rows) {
  if (is_static()) ranges_.input(wanted_.shown, -1, rows);
  decide_roundings();
  if (wanted_.hessian || wanted_.mean) tap_.input(wanted_.shown, -1, rows);
}

MatrixView<const double> GroupInputs::hessian(int expert) {
  return wanted_.hessian ? tap_.hessian(expert) : MatrixView<const double>();
}

MatrixView<const float> GroupInputs::drift(int expert) {
  if (!wanted_.drift) return {};
  if (!drift_) drift_ = tap_.drift(expert, kDriftDamping);
  return std::as_const(*drift_).view();
}

std::shared_ptr<const ActRounding> GroupInputs::rounding(int expert) const {
  const auto it = roundings_.find(expert);
  return it == roundings_.end() ? nullptr : it->second;
}

}  // namespace quern
