// SPDX-License-Identifier: Apache-2.0
// The first positions of a text as halves, beside the page that they lie in: attention meets them
// most, whatever they say, and their keys and values are unlike others (KVQuant, arXiv 2401.18079).
// They are kept as attention reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "kvcache/kv_codec.h"

namespace quern {

inline constexpr int64_t kMostKvSinks = 16;

class KvSinks {
 public:
  KvSinks(int64_t n, int64_t n_heads, int64_t d_head)
      : n_(n), d_(d_head), halves_(static_cast<size_t>(n_heads * 2 * n * d_head)) {}

  std::vector<uint16_t>& halves() { return halves_; }  // [n_heads, 2, n, d_head]: keys, values
  const std::vector<uint16_t>& halves() const { return halves_; }

  // Takes them from the first page x of a head, as it is before it is coded for keys that turn back
  // nothing.
  void keep(KvSide side, int64_t head, const float* x);
  // Puts in their place what codes no worse than the rest: keys of the next position, and zeros.
  void stand_in(KvSide side, float* x) const;
  // The first page as it is read, with them.
  KvOperand with(KvSide side, int64_t head, const KvOperand& read, const KvScratch& scratch) const;

 private:
  uint16_t* half_of(KvSide side, int64_t head, int64_t position) {
    return halves_.data() + ((head * 2 + (side == KvSide::kKeys ? 0 : 1)) * n_ + position) * d_;
  }
  // Element c of a position in a page.
  int64_t place(KvSide side, int64_t position, int64_t c) const {
    return side == KvSide::kKeys ? c * kKeyBlock + position : position * d_ + c;
  }
  float value(KvSide side, int64_t head, int64_t position, int64_t c) const;

  int64_t n_, d_;
  std::vector<uint16_t> halves_;
};

}  // namespace quern
