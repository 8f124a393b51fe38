// SPDX-License-Identifier: Apache-2.0
// What a codec does to a Gaussian source: after a random rotation the entries of a weight matrix
// look like one, so these figures rank codecs before any model is run.
#pragma once

#include <cstdint>

#include "codecs/codec.h"

namespace quern {

struct CodecMeasure {
  double bits = 0;    // weighed: 8 * bytes of all planes / weights
  double mse = 0;     // of unit Gaussian weights, coded to nearest without feedback
  double gap_db = 0;  // 10 log10(mse / 2^(-2 bits)): distance from the rate-distortion bound
  double encode_weights_per_second = 0, decode_weights_per_second = 0;  // of all threads
};

struct MeasureOptions {
  int64_t n_out = 1024, n_in = 1024;
  uint64_t seed = 0;
};

// Codes w to nearest, without feedback, from all threads; w_hat is what the codes decode to.
void code_to_nearest(const Codec& codec, MatrixView<const float> w, const MutableCodes& codes,
                     MatrixView<float> w_hat);

Result<CodecMeasure> measure(const Codec& codec, const MeasureOptions& options = {});

}  // namespace quern
