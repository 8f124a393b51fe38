// SPDX-License-Identifier: Apache-2.0
// Plans for any size of a model: curves (allocate/curves.h) once, then one integer programme
// (allocate/choose.h) for each size that is asked for.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "allocate/choose.h"
#include "allocate/curves.h"
#include "allocate/measure.h"
#include "allocate/plan.h"

namespace quern {

// Digest of all that curves depend on but for the stages of the mix, which they name: the model,
// the basis, the seed, and what `calibration` says of the samples.
std::string curves_key(const Prepared& prepared, uint64_t seed, const std::string& calibration);

class Allocation {
 public:
  // `prepared` has a recipe with a mix and must outlive this. Curves come from the file at `path`
  // as far as it has them, and what is missing is measured, which takes the calibration samples,
  // and added to it; an empty path: no file.
  struct Sources {
    std::string key;   // digest of what the curves depend on: curves_key
    std::string path;  // of the curves
    CorpusSource corpus;
    std::function<bool(const Json& event)> observe;
  };
  static Result<Allocation> make(const Prepared& prepared, const Sources& sources);

  // The plan of least expected KL whose weight files have at most so many bytes, headers included.
  Result<Plan> within_bytes(uint64_t budget) const;
  // Whose units take at most so many bits for each of their weights: what `mix(bits)` means.
  Result<Plan> within_bits(double bits) const;
  // The smallest plan of at most this expected KL.
  Result<Plan> within_kl(double kl) const;
  // The best plan of at most so many bytes in which all layers have one stage, and the ends one.
  // Fails where none is so small.
  Result<Plan> uniform_within_bytes(uint64_t budget) const;

 private:
  explicit Allocation(const Prepared& prepared) : prepared_(&prepared) {}
  void tabulate(const Curves& curves);
  int choice_of(size_t unit, size_t stage) const;
  Result<Plan> plan_of(const std::vector<int>& chosen) const;
  std::vector<std::vector<int>> uniform_choices() const;

  // A choice of a unit: a stage of the mix.
  struct Option {
    size_t stage = 0;
    double seconds = 0;
  };
  const Prepared* prepared_;
  std::vector<Unit> units_;
  ChoicesOfUnits choices_;                    // of each unit by rising bytes
  std::vector<std::vector<Option>> options_;  // the same
};

}  // namespace quern
