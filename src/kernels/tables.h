// SPDX-License-Identifier: Apache-2.0
// One line per implementation of the table: `ref` fills every slot, an ISA overrides what it
// improves.
#pragma once

#include "kernels/kernels.h"

namespace quern {

void fill_ref(KernelTable& table);
void fill_panels_ref(KernelTable& table);
void fill_levels_ref(KernelTable& table);
void fill_level_block_ref(KernelTable& table);
void fill_pairs_ref(KernelTable& table);
void fill_rows_avx2(KernelTable& table);
void fill_tile_avx2(KernelTable& table);
void fill_subtract_rows_avx2(KernelTable& table);
void fill_panels_avx2(KernelTable& table);
void fill_levels_avx2(KernelTable& table);
void fill_level_block_avx2(KernelTable& table);
void fill_level_rows_avx2(KernelTable& table);
void fill_rows_avx512(KernelTable& table);
void fill_tile_avx512(KernelTable& table);
void fill_subtract_rows_avx512(KernelTable& table);
void fill_panels_avx512(KernelTable& table);
void fill_levels_avx512(KernelTable& table);
void fill_level_block_avx512(KernelTable& table);
void fill_level_rows_avx512(KernelTable& table);
void fill_pairs_avx512(KernelTable& table);
void fill_panels_amx(KernelTable& table);  // over those of AVX-512
void fill_pairs_amx(KernelTable& table);   // likewise

}  // namespace quern
