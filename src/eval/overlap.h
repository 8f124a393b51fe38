// SPDX-License-Identifier: Apache-2.0
// How much of a text stood in another: the share of its runs of 13 tokens that occur there too. Of
// the other only the 512 smallest hashes of its runs are kept, which are a random sample of its
// distinct runs; runs of the text that hash as low are looked up among them (bottom-k sketches,
// Cohen and Kaplan 2007). Any n runs of the text with hashes below the largest kept give the share
// with a standard error of sqrt(share (1 - share) / n).
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "formats/json.h"
#include "tokenizer/tokenizer.h"

namespace quern {

constexpr size_t kOverlapRun = 13;

// {"tokens": 13, "hashes": words of 8 hex digits, ascending, without gaps}; an empty object where
// no sample is as long as a run.
Json sketch_runs(const std::vector<std::vector<Token>>& samples);

// Nothing where `sketch` is no sketch, or the text has no run that it could know.
std::optional<double> overlap(const Json& sketch, std::span<const Token> text);

}  // namespace quern
