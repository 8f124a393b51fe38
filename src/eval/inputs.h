// SPDX-License-Identifier: Apache-2.0
// What the matrices of a running model read: how large, how uneven, and what rounding it would
// cost. Outliers are what transforms are for; here they show.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "activations/act_quantizer.h"
#include "base/status.h"
#include "model/model.h"

namespace quern {

// What a quantizer would do to these inputs.
struct RoundingLoss {
  double zeros = 0;  // share of values that it rounds to zero (the quantization kernel of
                     // CrossQuant, arXiv 2410.07505)
  double error = 0;  // |x - x_hat|^2 / |x|^2, over all tokens
};

// Of the rows that one group of matrices of a layer reads, all experts together.
struct InputStatistics {
  int layer = 0;
  Role role = Role::kQ;  // the first of the group: kQ (q, k, v), kO, kGate (gate, up), kDown, ...
  int64_t n_rows = 0, n_in = 0;
  double max_abs = 0, rms = 0;       // of all values
  double token_peak = 0;             // mean over tokens of max|x| / rms
  double channel_peak = 0;           // largest max|x_j| over the median of them
  std::vector<RoundingLoss> losses;  // by each of the quantizers that were asked for
};

// The site of what such a group reads, as transforms name it: "attn_in", "heads", "mlp_in", "ffn";
// of shared experts their role.
std::string_view input_name(Role role);

struct InputOptions {
  std::vector<std::shared_ptr<const ActQuantizer>> acts;  // with scales of each row
  std::function<bool(double)> proceed = [](double) { return true; };
};

// Runs windows of tokens; ordered by layer, then as the data meets the matrices. Values are as the
// matrices meet them, behind online operators, before they are rounded.
Result<std::vector<InputStatistics>> measure_inputs(const Model& model,
                                                    std::span<const std::vector<Token>> windows,
                                                    const InputOptions& options);

}  // namespace quern
