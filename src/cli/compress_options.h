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

// An allocation event, or a plan as JSON, for people: bits of every unit, sizes, what is expected.
std::vector<std::string> plan_lines(const Json& plan);

// Where results that may be made again are kept between calls: XDG_CACHE_HOME/quern.
std::string cache_folder();

}  // namespace quern::cli
