// SPDX-License-Identifier: Apache-2.0
// An architecture: config.json -> ModelDesc, and where each weight lies in the checkpoint.
// One file per family, one line in list.inc.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "formats/checkpoint.h"
#include "model/layer_desc.h"
#include "model/roles.h"

namespace quern {

// Where a weight lies: rows of a stored tensor, or of its transpose. Weight row i is stored row
//   first + (i / block) * stride + i % block        (i in [0, rows))
// which covers whole tensors (block = rows), fused [q; k; v] and gate/up stacks, and heads that
// interleave q, k, v. Entries of biases and norms are found the same way in stored vectors.
struct WeightSource {
  std::string tensor;
  int64_t first = 0;
  int64_t block = 0;  // 0: all rows, contiguous
  int64_t stride = 0;
  int64_t stored_rows = 0;  // rows of the stored tensor; 0: those of the weight
  bool transposed = false;  // stored as [n_in, stored_rows] (GPT-2)
};

enum class Part : uint8_t { kWeight, kBias };

struct Arch {
  std::string_view name;                            // "llama"; model_type in config.json
  std::span<const std::string_view> architectures;  // "LlamaForCausalLM", ...
  // What checkpoints of the bare model, without its head, leave off the names of tensors.
  std::string_view base_prefix;  // "model."
  // Every bound of the hyper-parameters is checked here.
  Result<ModelDesc> (*describe)(const Json& config);
  // The place of a weight or bias that the description says exists.
  WeightSource (*locate)(const ModelDesc& model, const WeightId& id, Part part);
};

std::span<const Arch> archs();  // the rows of list.inc

// The architecture of a config: by architectures[0], else by model_type. The error lists the rows.
Result<const Arch*> find_arch(const Json& config);

}  // namespace quern
