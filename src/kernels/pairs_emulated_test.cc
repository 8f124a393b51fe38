// SPDX-License-Identifier: Apache-2.0
// pairs_amx.cc with its tiles in memory, so that it is tested on hosts without AMX too.
#include "kernels/tiles_emulated.h"

#define fill_pairs_amx fill_pairs_emulated
#include "kernels/pairs_amx.cc"  // NOLINT(bugprone-suspicious-include)
#undef fill_pairs_amx
