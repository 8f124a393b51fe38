// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>

#include "kernels/tables.h"
#include "kernels/tiles_check.h"

namespace quern {
namespace {

KernelTable make_table(Isa isa) {
  KernelTable table{};
  table.isa = std::min(isa, Isa::kAvx512);
  fill_ref(table);
  fill_panels_ref(table);
  fill_levels_ref(table);
  fill_level_block_ref(table);
  fill_pairs_ref(table);
  if (isa == Isa::kAvx2) {
    fill_rows_avx2(table);
    fill_tile_avx2(table);
    fill_subtract_rows_avx2(table);
    fill_panels_avx2(table);
    fill_levels_avx2(table);
    fill_level_block_avx2(table);
    fill_level_rows_avx2(table);
  }
  if (isa >= Isa::kAvx512) {
    fill_rows_avx512(table);
    fill_tile_avx512(table);
    fill_subtract_rows_avx512(table);
    fill_panels_avx512(table);
    fill_levels_avx512(table);
    fill_level_block_avx512(table);
    fill_level_rows_avx512(table);
    fill_pairs_avx512(table);
  }
  if (isa == Isa::kAmx) {
    fill_panels_amx(table);
    fill_pairs_amx(table);
  }
  return table;
}

}  // namespace

bool tiles_are_right() {
  const bool is_right = multiplies_alike(make_table(Isa::kAmx), make_table(Isa::kRef));
  if (!is_right) std::fprintf(stderr, "quern: AMX multiplies wrong on this machine; not used\n");
  return is_right;
}

const KernelTable& kernels(Isa isa) {
  static const KernelTable ref = make_table(Isa::kRef);
  static const KernelTable avx2 = make_table(Isa::kAvx2);
  static const KernelTable avx512 = make_table(Isa::kAvx512);
  static const KernelTable amx = make_table(Isa::kAmx);
  if (isa == Isa::kAmx && host_has(Isa::kAmx)) return amx;
  if (isa >= Isa::kAvx512 && host_has(Isa::kAvx512)) return avx512;
  if (isa != Isa::kRef && host_has(Isa::kAvx2)) return avx2;
  return ref;
}

const KernelTable& kernels() {
  static const KernelTable& best = kernels(best_isa());
  return best;
}

}  // namespace quern
