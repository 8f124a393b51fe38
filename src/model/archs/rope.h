// SPDX-License-Identifier: Apache-2.0
// Rotary embeddings from config.json, in the old layout (rope_theta beside rope_scaling, whose
// kind is called `type`) and in the new one (everything in rope_parameters).
//
// With f_j = theta^(-2j / n_dims), j in [0, n_dims / 2), the kinds are
//   default   inv_freq = f
//   linear    f / factor
//   llama3    f / factor below a low frequency, f above a high one, a ramp between them (Llama 3.1)
//   yarn      the same idea over dimensions, and a magnitude (Peng et al. 2023)
//   longrope  f / short_factor or f / long_factor by the length in use, and a magnitude
//   dynamic   f: the base changes only past max_position_embeddings, so the description is exact
//             up to the model's context, which is as far as quern runs a model
// Other kinds, and parameters that differ by layer type, are declined.
#pragma once

#include "model/archs/config_reader.h"

namespace quern {

struct RopeOptions {
  int64_t d_head = 0;
  int64_t n_context = 0;  // max_position_embeddings
  double theta = 10'000;  // when config.json is silent
  std::string_view theta_key = "rope_theta";
  // The share of a head that turns: 0 when the family has no such option.
  double partial = 0;
  std::string_view partial_key = "partial_rotary_factor";
  int64_t original_context = 0;  // where config.json is silent; 0: n_context
};

RopeDesc read_rope(ConfigReader& reader, const RopeOptions& options);

}  // namespace quern
