// SPDX-License-Identifier: Apache-2.0
#include "kernels/lanes.h"
#include "kernels/lanes_avx512.h"

namespace quern {

void fill_rows_avx512(KernelTable& table) { RowKernels<Lanes>::fill(table); }

}  // namespace quern
