// SPDX-License-Identifier: Apache-2.0
// What a weight is for. Roles are the only names the pipeline knows; tensor names of checkpoints
// are the business of model/archs.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace quern {

enum class Role : uint8_t {
  // whole model
  kEmbed,      // [n_vocab, d_model]
  kPosEmbed,   // [n_positions, d_model]
  kFinalNorm,  // [d_model]
  kLmHead,     // [n_vocab, d_model]
  // one layer: attention
  kAttnNorm,      // [d_model]
  kQ,             // [n_heads * d_head, d_model]
  kK,             // [n_kv_heads * d_head, d_model]
  kV,             // [n_kv_heads * d_head, d_model]
  kO,             // [d_model, n_heads * d_head]
  kQNorm,         // [d_head]
  kKNorm,         // [d_head]
  kAttnPostNorm,  // [d_model]
  // one layer: MLP; gate, up, down belong to one expert when the layer has experts
  kMlpNorm,       // [d_model]
  kGate,          // [d_ffn, d_model]
  kUp,            // [d_ffn, d_model]
  kDown,          // [d_model, d_ffn]
  kMlpPostNorm,   // [d_model]
  kRouter,        // [n_experts, d_model]
  kSharedGate,    // shared expert, [d_ffn_shared, d_model]
  kSharedUp,      // [d_ffn_shared, d_model]
  kSharedDown,    // [d_model, d_ffn_shared]
  kSharedRouter,  // [1, d_model]: sigmoid gate of the shared expert
  // a stream whose width or basis changes within a layer (LayerDesc::is_sliced)
  kAttnSkip,  // [d_mid, d_in]: past attention; absent in a parallel layer
  kMlpSkip,   // [d_out, d_mid]: past the MLP, or past both
};

std::string_view role_name(Role role);                      // "q", "down", "lm_head"
std::optional<Role> role_from_name(std::string_view name);  // nothing if unknown
bool is_linear(Role role);  // a matrix that multiplies activations (and may be coded)

// One weight of a model.
struct WeightId {
  Role role = Role::kEmbed;
  int layer = -1;   // -1: belongs to the whole model
  int expert = -1;  // -1: not one expert's
  auto operator<=>(const WeightId&) const = default;
};

std::string to_string(const WeightId& id);  // "layers.3.experts.1.down"

}  // namespace quern
