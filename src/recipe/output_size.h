// SPDX-License-Identifier: Apache-2.0
// The bytes of a compressed model's weight files, known before it is made.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "recipe/dense_tensors.h"
#include "recipe/output_plan.h"
#include "recipe/prepared.h"

namespace quern {

// Where shards begin when tensors of these sizes are written in this order; the first is 0.
std::vector<size_t> shard_starts(std::span<const uint64_t> sizes);

// Every tensor that the plan will write, by name. `basis` must be whole: fitted operators have
// data, too.
Result<std::vector<TensorSpec>> output_tensors(const Prepared& prepared, const OutputPlan& plan);

// Bytes of the weight files that hold these tensors, headers included, as ModelFiles::weight_bytes
// counts them.
Result<uint64_t> weight_file_bytes(std::vector<TensorSpec> tensors);

}  // namespace quern
