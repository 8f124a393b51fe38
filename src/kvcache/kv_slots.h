// SPDX-License-Identifier: Apache-2.0
// What a policy of eviction knows of one layer's cache: of each KV head which positions its slots
// hold, and their scores; and of the whole layer what decisions to come need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcache/kv_layer_state.h"
#include "kvcache/kv_policy.h"
#include "tensor/view.h"

namespace quern {

struct KvSlots {
  KvSlots() = default;
  KvSlots(const KvPolicy& policy, int64_t n_heads)
      : positions(static_cast<size_t>(n_heads)),
        scores(positions.size()),
        is_open(policy.n_prompt_queries() > 0) {}

  std::vector<std::vector<int32_t>> positions;  // by head, ascending
  std::vector<std::vector<float>> scores;       // by head and slot
  int64_t n_dropped = 0;                        // positions of every head
  bool is_open = false;                         // the prompt whose end decides has not ended
  // The newest queries of an open prompt, as attention reads them: rows of query_width.
  std::vector<float> queries;
  int64_t query_width = 0;
  // Keys of the first positions before RoPE, where these move: rows of moving_width.
  std::vector<float> moving;
  int64_t moving_width = 0;

  void append(int64_t position, int64_t n);
  void keep_queries(MatrixView<const float> rows, int64_t most);
  void keep_moving(MatrixView<const float> rows);
  int64_t n_queries() const { return rows(queries, query_width); }
  int64_t n_moving() const { return rows(moving, moving_width); }
  size_t n_bytes() const;

  // As tensors, and back (kv_layer_state.cc); rows of queries and of keys have the given widths.
  void add_state(std::vector<KvStateTensor>& tensors) const;
  Status restore(const KvPolicy& policy, int64_t n_positions, int64_t of_queries, int64_t of_keys,
                 const KvFindTensor& find);

 private:
  static int64_t rows(const std::vector<float>& x, int64_t width) {
    return width == 0 ? 0 : static_cast<int64_t>(x.size()) / width;
  }
};

}  // namespace quern
