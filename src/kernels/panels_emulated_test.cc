// SPDX-License-Identifier: Apache-2.0
// panels_amx.cc with its tiles in memory, so that it is tested on hosts without AMX too.
#include "kernels/tiles_emulated.h"

#define fill_panels_amx fill_panels_emulated
#include "kernels/panels_amx.cc"  // NOLINT(bugprone-suspicious-include)
#undef fill_panels_amx
