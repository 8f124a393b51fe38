// SPDX-License-Identifier: Apache-2.0
// Online operators: chains of a basis as a running model applies them to rows of activations.
#pragma once

#include <cstdint>
#include <functional>

#include "model/spent_time.h"
#include "tensor/view.h"
#include "transforms/basis.h"

namespace quern {

// x <- x M^T, x M^-T, or x M^-1 (of what meets x in a product); rows are shared out among threads.
enum class Online : uint8_t { kApply, kInverse, kInverseTranspose };
void apply_online(const Chain& chain, MatrixView<float> x, SpentTime* time = nullptr,
                  Online what = Online::kApply);

// A chain that rows have still to go through, x -> x M^T, before a product reads them.
struct OnlineChain {
  const Chain* chain = nullptr;  // null: none
  SpentTime* time = nullptr;  // what the chain takes, the mean of the threads; null: not measured
  bool empty() const { return chain == nullptr || chain->empty(); }
};

// y <- x behind the chain; they may not overlap.
void put_behind(const OnlineChain& online, MatrixView<const float> x, MatrixView<float> y);

// body(i, row i of x behind the chain) for every row, from several threads. A few rows go through
// the chain together and are handed on while a cache holds them.
void for_rows_behind(const OnlineChain& online, MatrixView<const float> x,
                     const std::function<void(int64_t i, const float* row)>& body);

}  // namespace quern
