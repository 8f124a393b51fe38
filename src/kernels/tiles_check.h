// SPDX-License-Identifier: Apache-2.0
// Whether products are right on this machine, asked once before AMX is used: its tiles are state
// that the kernel and a hypervisor have to keep, which vectors of other instruction sets are not.
#pragma once

#include "kernels/kernels.h"

namespace quern {

// Whether `table` multiplies an example in int8 and one in bfloat16, with whole tiles and parts of
// them, to the bits of `reference`. Takes less than a millisecond.
bool multiplies_alike(const KernelTable& table, const KernelTable& reference);

// Whether AMX's kernels do, on this machine, which has to have them; else says so on stderr.
bool tiles_are_right();

}  // namespace quern
