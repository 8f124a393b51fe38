// SPDX-License-Identifier: Apache-2.0
// Puts a finished compression together: weights, config.json with quantization_config, tokenizer
// files, all in a folder that is moved to its place when complete.
#pragma once

#include "recipe/journal.h"
#include "recipe/output_plan.h"

namespace quern {

enum class Existing : uint8_t { kRefuse, kReplace };  // what to do with a folder that is there

// `out` without trailing slashes, or why the compression of `model` may not be written there.
Result<std::string> output_folder(std::string out, const std::string& model, Existing existing);

Status write_model(const ModelFiles& source, const OutputPlan& plan, const Packed& packed,
                   Journal& journal, const std::string& out);

}  // namespace quern
