// SPDX-License-Identifier: Apache-2.0
// The part of a layer's cache that a policy of eviction moves. Kept rows close ranks in ascending
// order, so that a cache that drops nothing is the plain one to the bit.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "kvcache/kv_cache.h"

namespace quern {

void KvSlots::append(int64_t position, int64_t n) {
  for (size_t head = 0; head < positions.size(); ++head) {
    for (int64_t i = 0; i < n; ++i) positions[head].push_back(static_cast<int32_t>(position + i));
    scores[head].resize(positions[head].size());
  }
}

void KvSlots::keep_queries(MatrixView<const float> rows, int64_t most) {
  query_width = rows.cols;
  for (int64_t i = std::max<int64_t>(0, rows.rows - most); i < rows.rows; ++i) {
    queries.insert(queries.end(), rows.row(i), rows.row(i) + rows.cols);
  }
  const int64_t surplus = n_queries() - most;
  if (surplus > 0) queries.erase(queries.begin(), queries.begin() + surplus * query_width);
}

void KvSlots::keep_moving(MatrixView<const float> rows) {
  moving_width = rows.cols;
  for (int64_t i = 0; i < rows.rows; ++i) {
    moving.insert(moving.end(), rows.row(i), rows.row(i) + rows.cols);
  }
}

size_t KvSlots::n_bytes() const {
  size_t total = (queries.capacity() + moving.capacity()) * sizeof(float);
  for (const auto& head : positions) total += head.capacity() * sizeof(int32_t);
  for (const auto& head : scores) total += head.capacity() * sizeof(float);
  return total;
}

int64_t LayerKv::first_slot(int64_t head, int64_t position) const {
  if (policy() == nullptr) return std::max<int64_t>(0, position);
  const std::vector<int32_t>& positions = slots_.positions[static_cast<size_t>(head)];
  return std::lower_bound(positions.begin(), positions.end(), position) - positions.begin();
}

bool LayerKv::evict() {
  const bool has_evicted = length_ > policy()->budget() && close_ranks();
  if (!slots_.is_open) return has_evicted;
  // The prompt that ended is not asked about again, and what is old in it may be coded.
  slots_.is_open = false;
  slots_.queries = std::vector<float>();
  pages_.resize(coded_slots(length_ - 1) / kKeyBlock);
  seal_from(0);
  return has_evicted;
}

bool LayerKv::close_ranks() {
  QUERN_CHECK(exact_begin_ == 0 && pages_.size() == 0);
  std::vector<std::vector<int32_t>> kept(static_cast<size_t>(shape_.n_kv_heads));
  int64_t first = length_;  // the first slot that changes
  for (size_t head = 0; head < kept.size(); ++head) {
    std::vector<int32_t>& keep = kept[head];
    policy()->choose(slots_.scores[head], keep);
    QUERN_CHECK(keep.size() == kept[0].size() && !keep.empty());
    const auto n = static_cast<int64_t>(keep.size());
    const auto moves = [&](int64_t i) { return keep[static_cast<size_t>(i)] != i; };
    int64_t i = 0;
    while (i < std::min(n, first) && !moves(i)) ++i;
    first = std::min(first, i);
  }
  const auto n = static_cast<int64_t>(kept[0].size());
  if (n == length_) return false;
  exact_blocks_.make_own(first / kKeyBlock, ceil_div(n, kKeyBlock));
  parallel_for(shape_.n_kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      const auto at = static_cast<size_t>(head);
      if (policy()->absorbs()) absorb(head, kept[at]);
      for (int64_t i = first; i < n; ++i) {
        const auto to = static_cast<size_t>(i);
        const auto from = static_cast<size_t>(kept[at][to]);
        slots_.positions[at][to] = slots_.positions[at][from];
        slots_.scores[at][to] = slots_.scores[at][from];
        move_row(head, kept[at][to], i);
      }
      slots_.positions[at].resize(static_cast<size_t>(n));
      slots_.scores[at].resize(static_cast<size_t>(n));
    }
  });
  slots_.n_dropped += length_ - n;
  length_ = n;
  // Room for what comes until the next decision stays; more than that is given back.
  const bool is_once = policy()->n_prompt_queries() > 0;
  const int64_t room = is_once ? 0 : ceil_div(policy()->most_slots(), kKeyBlock);
  if (exact_blocks_.size() <= room) return true;
  exact_blocks_.resize(ceil_div(n, kKeyBlock));
  exact_blocks_.make_own(room);
  return true;
}

// Adds the slots of a head that are not among `kept` to the state, the oldest first.
void LayerKv::absorb(int64_t head, std::span<const int32_t> kept) {
  const int64_t n = length_ - static_cast<int64_t>(kept.size()), d = shape_.d_head;
  Matrix<float> keys(n, d), values(n, d), psi(n, shape_.maps->n_features());
  size_t next = 0;
  for (int64_t slot = 0, i = 0; slot < length_; ++slot) {
    if (next < kept.size() && kept[next] == slot) {
      ++next;
      continue;
    }
    row_floats(KvSide::kKeys, head, slot, keys.row(i));
    row_floats(KvSide::kValues, head, slot, values.row(i++));
  }
  shape_.maps->psi(head, keys.view(), psi.data());
  for (int64_t i = 0; i < n; ++i) absorbed_.add(head, psi.row(i), values.row(i));
}

// A row of halves, as it came, of blocks that begin at slot 0.
void LayerKv::row_floats(KvSide side, int64_t head, int64_t slot, float* x) const {
  const int64_t block = slot / kKeyBlock, row = slot % kKeyBlock, d = shape_.d_head;
  if (side == KvSide::kValues) {
    const std::byte* values = exact_blocks_.at(block, value_part(head));
    return kernels().f16_to_float(values + value_place(row, 0), d, x);
  }
  const std::byte* keys = exact_blocks_.at(block, key_part(head));
  for (int64_t c = 0; c < d; ++c) kernels().f16_to_float(keys + key_place(row, c), 1, x + c);
}

void LayerKv::move_row(int64_t head, int64_t from, int64_t to) {
  if (from == to) return;
  const int64_t width = dtype_bits(exact_) / 8, row = row_bytes();
  const int64_t from_block = from / kKeyBlock, to_block = to / kKeyBlock;
  const std::byte* key = exact_blocks_.at(from_block, key_part(head)) + from % kKeyBlock * width;
  std::byte* new_key = exact_blocks_.own(to_block, key_part(head)) + to % kKeyBlock * width;
  for (int64_t c = 0; c < shape_.d_head; ++c) {
    std::memcpy(new_key + c * kKeyBlock * width, key + c * kKeyBlock * width,
                static_cast<size_t>(width));
  }
  std::memcpy(exact_blocks_.own(to_block, value_part(head)) + to % kKeyBlock * row,
              exact_blocks_.at(from_block, value_part(head)) + from % kKeyBlock * row,
              static_cast<size_t>(row));
}

void LayerKv::rewrite(KvSide side, int64_t slot, MatrixView<const float> rows) {
  QUERN_CHECK(slot >= exact_begin_ && slot + rows.rows <= length_);
  exact_blocks_.make_own((slot - exact_begin_) / kKeyBlock,
                         ceil_div(slot + rows.rows - exact_begin_, kKeyBlock));
  for (int64_t head = 0; head < shape_.n_kv_heads; ++head) {
    for (int64_t i = 0; i < rows.rows; ++i) {
      const float* row = rows.row(i) + head * shape_.d_head;
      if (side == KvSide::kKeys) {
        put_key(head, slot + i, row);
      } else {
        put_value(head, slot + i, row);
      }
    }
  }
}

}  // namespace quern
