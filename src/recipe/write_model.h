// SPDX-License-Identifier: Apache-2.0
// Puts a finished compression together: weights, config.json with quantization_config, tokenizer
// files, all in a folder that is moved to its place when complete.
#pragma once

#include <functional>
#include <string>

#include "recipe/journal.h"
#include "recipe/output_plan.h"

namespace quern {

enum class Existing : uint8_t { kRefuse, kReplace };  // what to do with a folder that is there

// `out` without trailing slashes, or why the compression of `model` may not be written there.
Result<std::string> output_folder(std::string out, const std::string& model, Existing existing);

// Looks at a complete folder before it takes the place of an output; an error keeps it from that.
using Acceptance = std::function<Status(const std::string& folder)>;

// What is refused is moved to `out` + ".refused"; where it is a cancelled acceptance, the same call
// asks again.
Status write_model(const ModelFiles& source, const OutputPlan& plan, const Packed& packed,
                   Journal& journal, const std::string& out, const Acceptance& accept = nullptr);

}  // namespace quern
