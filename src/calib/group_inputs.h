// SPDX-License-Identifier: Apache-2.0
// What calibration says of the inputs of matrices that read the same and round alike: how they are
// rounded, and, of the rounded rows, their Hessian and their drift.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "calib/collect.h"
#include "calib/streams.h"

namespace quern {

class GroupInputs {
 public:
  struct Wanted {
    Role shown = Role::kQ;  // as the tap names the group
    int first_expert = -1, last_expert = -1;
    int64_t n_in = 0;
    std::shared_ptr<const ActQuantizer> act;  // null: nothing is rounded
    bool hessian = false, drift = false, mean = false;
  };

  explicit GroupInputs(Wanted wanted)
      : wanted_(std::move(wanted)),
        ranges_(wanted_.shown),
        tap_(wanted_.shown, wanted_.first_expert, wanted_.last_expert) {
    if (wanted_.mean) tap_.take_means();
  }

  // Passes calibration through a layer as often as needed; not at all if nothing is wanted that
  // depends on it. False if `proceed` said so.
  bool gather(const Streams* streams, int layer, const LayerWeights& source,
              const LayerWeights& coded, const std::function<bool()>& proceed);
  // Of rows at hand.
  void gather(MatrixView<const float> rows);

  MatrixView<const double> hessian(int expert);                             // empty unless wanted
  MatrixView<const float> drift(int expert);                                // empty unless wanted
  std::vector<double> mean(int expert) const { return tap_.mean(expert); }  // likewise
  std::shared_ptr<const ActRounding> rounding(int expert) const;

 private:
  bool is_static() const {
    return wanted_.act != nullptr && wanted_.act->n_ranges(wanted_.n_in) > 0;
  }
  void decide_roundings();

  Wanted wanted_;
  RangeTap ranges_;
  GramTap tap_;
  std::map<int, std::shared_ptr<const ActRounding>> roundings_;
  std::optional<Matrix<float>> drift_;
};

}  // namespace quern
