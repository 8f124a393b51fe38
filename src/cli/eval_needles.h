// SPDX-License-Identifier: Apache-2.0
// What caches recall of needles (eval/needle.h), each beside a plain one on the same prompts.
#pragma once

#include <vector>

#include "cli/eval_caches.h"
#include "eval/needle.h"

namespace quern::cli {

// --needle, which asks for it, --needle-copies, --needle-depths, --needle-samples, --seed
void add_needles(CLI::App& app, bool& is_asked, NeedleOptions& options);

// Prints a row for each cache of the model. `base`: whose plain cache they are compared with.
Status eval_needles(const Model& model, const Model& base, const std::vector<Token>& text,
                    const std::vector<NamedCache>& caches, NeedleOptions options, CacheTable table);

}  // namespace quern::cli
