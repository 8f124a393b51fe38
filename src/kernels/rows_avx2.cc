// SPDX-License-Identifier: Apache-2.0
#include "kernels/lanes.h"
#include "kernels/lanes_avx2.h"

namespace quern {

void fill_rows_avx2(KernelTable& table) { RowKernels<Lanes>::fill(table); }

}  // namespace quern
