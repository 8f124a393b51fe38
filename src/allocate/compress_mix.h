// SPDX-License-Identifier: Apache-2.0
// The best model that fits: a plan for a target, its compression, and the proof that it was worth
// it. The planned model and the uniform one of the same size are both made and compared with the
// original on calibration text that neither has seen; the closer one is what is written.
#pragma once

#include <cstdint>
#include <string>

#include "allocate/plan.h"
#include "model/linear.h"
#include "recipe/compress.h"

namespace quern {

// One of the three, or none: then what the recipe's mix says.
struct SizeTarget {
  uint64_t bytes = 0;  // of the weight files, headers included
  double bpw = 0;      // of these over all parameters
  double kl = 0;       // expected divergence, nats per token
  bool is_set() const { return bytes > 0 || bpw > 0 || kl > 0; }
};

struct MixOptions {
  CompressOptions compress;  // its recipe has a mix
  SizeTarget target;
  std::string plan;    // a plan file to carry out, if it exists; else where the plan is written
  std::string curves;  // file of curves; empty: one of curves_folder
  std::string curves_folder;  // where curves are kept by what they depend on; empty: nowhere
  bool dry_run = false;       // ends with the plan
  bool check = true;          // against the uniform plan
  Activations activations{};  // in that check
  // Of a finished folder from the original, where a divergence is the target.
  std::function<Result<double>(const std::string& folder)> divergence;
};

struct MixResult {
  Plan plan;
  bool is_compressed = false;
  CompressResult compressed;
  // Of the check; < 0: not measured. The smaller is that of the output.
  double planned_kl = -1, uniform_kl = -1;
};

// Whether the text has a mix, so that it goes through compress_mix.
Result<bool> has_mix(const std::string& recipe);

Result<MixResult> compress_mix(const MixOptions& options);

// What any recipe says: planned first, without the check, where it has a mix.
Result<CompressResult> compress_any(const CompressOptions& options,
                                    const std::string& curves_folder);

}  // namespace quern
