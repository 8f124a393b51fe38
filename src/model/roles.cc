// SPDX-License-Identifier: Apache-2.0
#include "model/roles.h"

#include <fmt/format.h>

namespace quern {
namespace {

struct Row {
  Role role;
  std::string_view name;
  bool linear;
};

constexpr Row kRows[] = {
    {Role::kEmbed, "embed", false},
    {Role::kPosEmbed, "pos_embed", false},
    {Role::kFinalNorm, "final_norm", false},
    {Role::kLmHead, "lm_head", true},
    {Role::kAttnNorm, "attn_norm", false},
    {Role::kQ, "q", true},
    {Role::kK, "k", true},
    {Role::kV, "v", true},
    {Role::kO, "o", true},
    {Role::kQNorm, "q_norm", false},
    {Role::kKNorm, "k_norm", false},
    {Role::kAttnPostNorm, "attn_post_norm", false},
    {Role::kMlpNorm, "mlp_norm", false},
    {Role::kGate, "gate", true},
    {Role::kUp, "up", true},
    {Role::kDown, "down", true},
    {Role::kMlpPostNorm, "mlp_post_norm", false},
    {Role::kRouter, "router", true},
    {Role::kSharedGate, "shared_gate", true},
    {Role::kSharedUp, "shared_up", true},
    {Role::kSharedDown, "shared_down", true},
    {Role::kSharedRouter, "shared_router", true},
    {Role::kAttnSkip, "attn_skip", true},
    {Role::kMlpSkip, "mlp_skip", true},
};

}  // namespace

std::string_view role_name(Role role) { return kRows[static_cast<int>(role)].name; }

std::optional<Role> role_from_name(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.role;
  }
  return std::nullopt;
}

bool is_linear(Role role) { return kRows[static_cast<int>(role)].linear; }

std::string to_string(const WeightId& id) {
  std::string text;
  if (id.layer >= 0) text += fmt::format("layers.{}.", id.layer);
  if (id.expert >= 0) text += fmt::format("experts.{}.", id.expert);
  return text.append(role_name(id.role));
}

}  // namespace quern
