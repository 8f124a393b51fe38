// SPDX-License-Identifier: Apache-2.0
// Roles of a layer's matrices that read the same activations, in the order in which data meets
// them.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "model/roles.h"

namespace quern {

struct InputGroup {
  Role shown;  // as a LayerTap names it
  std::vector<Role> roles;
  bool is_per_expert = false;

  bool has(Role role) const { return std::find(roles.begin(), roles.end(), role) != roles.end(); }
};

inline const std::array<InputGroup, 6> kInputGroups = {{
    {Role::kQ, {Role::kQ, Role::kK, Role::kV}},
    {Role::kO, {Role::kO}},
    {Role::kGate, {Role::kGate, Role::kUp}, true},
    {Role::kDown, {Role::kDown}, true},
    {Role::kSharedGate, {Role::kSharedGate, Role::kSharedUp}},
    {Role::kSharedDown, {Role::kSharedDown}},
}};

}  // namespace quern
