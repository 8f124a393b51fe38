// SPDX-License-Identifier: Apache-2.0
#include "tensor/matrix.h"

#include <sys/mman.h>

#include <new>

namespace quern {
namespace {

constexpr size_t kLine = 64;

std::align_val_t alignment_of(size_t n_bytes) {
  return std::align_val_t{n_bytes >= kHugePage ? kHugePage : kLine};
}

}  // namespace

void* allocate_lines(size_t n_bytes) {
  void* memory = ::operator new(n_bytes, alignment_of(n_bytes));
  // A wish: where it is not granted, nothing is lost.
  if (n_bytes >= kHugePage) madvise(memory, n_bytes, MADV_HUGEPAGE);
  return memory;
}

void free_lines(void* memory, size_t n_bytes) { ::operator delete(memory, alignment_of(n_bytes)); }

}  // namespace quern
