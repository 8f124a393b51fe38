// SPDX-License-Identifier: Apache-2.0
// What this machine can run. The list of features is the list of flags in CMakeLists.txt.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "kernels/kernels.h"
#include "kernels/tiles_check.h"

namespace quern {

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      return "ref";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAmx:
      return "amx";
  }
  return "?";
}

namespace {

// clang's __builtin_cpu_supports does not know this one.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// The processor may have tiles that the system keeps from a process until it asks.
bool has_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  constexpr unsigned kTilesInt8Bf16 = 1U << 24 | 1U << 25 | 1U << 22;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
         (edx & kTilesInt8Bf16) == kTilesInt8Bf16 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool host_has(Isa isa) {
  // Asked once: below a virtual machine the instruction takes as long as a thousand others.
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
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
    case Isa::kAmx: {
      static const bool is_granted = host_has(Isa::kAvx512) && has_amx() && tiles_are_right();
      return is_granted;
    }
  }
  return false;
}

namespace {

Isa find_best_isa() {
  Isa best = Isa::kRef;
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) best = host_has(isa) ? isa : best;
  const char* wanted = std::getenv("QUERN_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (isa_name(isa) == wanted) return isa < best ? isa : best;
  }
  std::fprintf(stderr, "quern: QUERN_ISA='%s' is ignored; it may be ref, avx2, avx512 or amx\n",
               wanted);
  return best;
}

}  // namespace

Isa best_isa() {
  static const Isa best = find_best_isa();
  return best;
}

}  // namespace quern
