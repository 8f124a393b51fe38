// SPDX-License-Identifier: Apache-2.0
// What `compress` and `compare` share.
#pragma once

#include "cli/command.h"
#include "recipe/compress.h"

namespace quern::cli {

// --calibration, --nsamples, --seqlen, --seed
void add_calibration(CLI::App& app, CompressOptions& options);

// Shows events on the bar, or prints them as JSON lines; cancels when interrupted.
std::function<bool(const Json&)> compress_observer(ProgressBar& bar, bool json);

}  // namespace quern::cli
