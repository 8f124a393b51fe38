// SPDX-License-Identifier: Apache-2.0
// Angles of the rotary embedding for the rows of a batch.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "model/layer_desc.h"
#include "tensor/matrix.h"

namespace quern {

struct SequenceRows;

// Cosines and sines of every row's position, times the magnitude: [n_rows, n_dims / 2] each.
struct RopeTable {
  Matrix<float> cosine, sine;
};

// Tables of one batch, made once for all layers that turn alike; a batch of other positions starts
// anew.
class RopeTables {
 public:
  // Valid until the next call.
  const RopeTable& at(const RopeDesc& rope, std::span<const SequenceRows> sequences);

 private:
  struct Rows {
    int64_t position, n_rows, context;
    bool operator==(const Rows&) const = default;
  };
  std::vector<Rows> rows_;
  std::vector<std::pair<RopeDesc, RopeTable>> tables_;
};

}  // namespace quern
