// SPDX-License-Identifier: Apache-2.0
// Checkpoint in, smaller checkpoint out: the whole compression, one decoder layer at a time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "calib/corpus.h"
#include "formats/json.h"

namespace quern {

struct CompressOptions {
  std::string model;        // Hugging Face folder or GGUF file
  std::string out;          // folder to write
  std::string recipe;       // text, or a .recipe file
  std::string calibration;  // text file; empty: text drawn from the model
  CorpusOptions corpus;
  const Corpus* given_corpus = nullptr;  // samples made before; replaces the two above
  uint64_t seed = 0;
  bool force = false;                       // replace `out` if it exists
  size_t hessian_budget = size_t{2} << 30;  // bytes of Hessians held at once (experts)
  // Looks at the finished folder before it takes the place of `out`; an error keeps it from that,
  // and it becomes `out` + ".refused". Null: whatever comes out is accepted.
  std::function<Status(const std::string& folder)> accept;
  // Told what happens, as JSON events: plan, progress, layer, done. Returning false cancels; the
  // work so far is kept and the same call goes on from there.
  std::function<bool(const Json& event)> observe = [](const Json&) { return true; };
};

struct CompressResult {
  int64_t n_params = 0;
  uint64_t weight_bytes = 0;
  double bpw = 0, linear_bpw = 0;
  double output_error = -1;  // relative, after the last layer; -1: not measured
  double seconds = 0;
  std::vector<std::string> notes;
};

// Fills in the sizes of the model that a folder holds.
Status weigh(const std::string& folder, CompressResult& result);

// The calibration samples that these options ask for.
Result<Corpus> gather_corpus(const CompressOptions& options);

// `n` more of the same kind that share nothing with these; a short text may have fewer.
Result<Corpus> gather_held_out(const CompressOptions& options, int64_t n);

Result<CompressResult> compress(const CompressOptions& options);

}  // namespace quern
