// SPDX-License-Identifier: Apache-2.0
// A needle in a haystack for models of plain text: what a cache still knows of a passage that stood
// far back. The needle is a passage of the text from elsewhere; it stands at some depth of filler,
// a few times over, and the end of the filler repeats its first half, the cue. Asked for is the
// second half. What a model says of that without a needle is the control, where a cache ends that
// lost it.
//
//   BOS | filler ... | needle needle ... | ... filler | cue | answer
//   BOS | filler ...                            filler | cue | answer        (the control)
//
// A model answers by finding the cue's earlier place and copying what followed (Olsson et al.,
// arXiv 2209.11895), which small models do; the questions that the name comes from need one that
// follows instructions. Said once, a passage is little for models of some ten million parameters
// (docs/caches.md).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "eval/mean.h"
#include "model/model.h"

namespace quern {

struct NeedleOptions {
  int64_t n_ctx = 1024;  // tokens of all
  int64_t length = 32;   // tokens of a needle, even
  int64_t n_copies = 4;  // of it, one behind the other
  int64_t n_depths = 5;
  int64_t n_samples = 8;  // of filler and needle, each at every depth
  uint64_t seed = 0;
  // Asked between answers with the share done; false cancels.
  std::function<bool(double)> proceed = [](double) { return true; };
};

// Runs of the text that do not overlap.
struct NeedleSample {
  std::vector<Token> filler;  // of the control; less by the copies of the needle otherwise
  std::vector<Token> needle;  // [length]
};
// Fillers begin at equal distances in the text, needles at random.
Result<std::vector<NeedleSample>> needle_samples(const ModelDesc& model,
                                                 std::span<const Token> text,
                                                 const NeedleOptions& options);

// By sample.
struct NeedleScores {
  std::vector<double> recall;          // share of the answer's tokens that are ranked first
  std::vector<double> log_likelihood;  // nats per token of the answer
};
struct NeedleResult {
  std::vector<double> depths;    // share of the filler that stands before the needle
  std::vector<NeedleScores> at;  // [n_depths]
  NeedleScores mean;             // over the depths
  NeedleScores control;          // with more of the filler in the needle's place
  // Of the caches behind the cue: of a number in pages, and of any of the text (kv_cache.h); means.
  double kv_bits = 0, kv_held_bits = 0;
  double seconds = 0;
};

// Every prompt is read by the cache token by token, as in use, and ends behind the cue; the answer
// is fed as what a model would have generated.
Result<NeedleResult> find_needles(const Model& model, const KvCacheRecipe& kv,
                                  std::span<const NeedleSample> samples,
                                  const NeedleOptions& options);

// other - base, of samples in pairs.
Mean paired_difference(const std::vector<double>& base, const std::vector<double>& other);

}  // namespace quern
