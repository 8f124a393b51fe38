// SPDX-License-Identifier: Apache-2.0
// What this machine can run. The list of features is the list of flags in CMakeLists.txt.
#include <cpuid.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "kernels/kernels.h"

namespace quern {

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      return "ref";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "?";
}

namespace {

// clang's __builtin_cpu_supports does not know this one.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

}  // namespace

bool host_has(Isa isa) {
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        has_f16c() && __builtin_cpu_supports("bmi2");
  switch (isa) {
    case Isa::kRef:
      return true;
    case Isa::kAvx2:
      return has_avx2;
    case Isa::kAvx512:
      return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
}

namespace {

Isa find_best_isa() {
  Isa best = host_has(Isa::kAvx512) ? Isa::kAvx512 : host_has(Isa::kAvx2) ? Isa::kAvx2 : Isa::kRef;
  const char* wanted = std::getenv("QUERN_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (isa_name(isa) == wanted) return isa < best ? isa : best;
  }
  std::fprintf(stderr, "quern: QUERN_ISA='%s' is ignored; it may be ref, avx2 or avx512\n", wanted);
  return best;
}

}  // namespace

Isa best_isa() {
  static const Isa best = find_best_isa();
  return best;
}

}  // namespace quern
