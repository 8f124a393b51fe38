// SPDX-License-Identifier: Apache-2.0
// The part of a layer's cache that heads which merge have apart.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "formats/checkpoint.h"
#include "kvcache/kv_cache.h"

namespace quern {

void KvMergedHead::join(int64_t position, MatrixView<const float> k, MatrixView<const float> v) {
  const int64_t newest = slots.n_slots() - 1;
  slots.rewrite(KvSide::kKeys, newest, k);
  slots.rewrite(KvSide::kValues, newest, v);
  positions.back() = static_cast<int32_t>(position);
}

void KvMergedHead::start(int64_t position, MatrixView<const float> k, MatrixView<const float> v) {
  slots.put(slots.n_slots(), k, v);
  positions.push_back(static_cast<int32_t>(position));
}

void KvMergedHead::add_state(int64_t head, std::vector<KvStateTensor>& tensors) const {
  std::vector<KvStateTensor> own = slots.state();
  own.push_back(KvStateTensor::of("positions", DType::kI32, positions));
  own.push_back(KvStateTensor::of("open", DType::kF32, open.rows()));
  own.back().shape = {own.back().shape[0] / open.width(), open.width()};
  for (KvStateTensor& tensor : own) {
    tensor.name = state_name(head, tensor.name);
    tensors.push_back(std::move(tensor));
  }
}

std::string KvMergedHead::state_name(int64_t head, std::string_view name) {
  return fmt::format("heads.{}.{}", head, name);
}

Status KvMergedHead::restore(int64_t head, int64_t n_positions, const KvFindTensor& find) {
  const auto find_own = [&](std::string_view name) { return find(state_name(head, name)); };
  const TensorInfo* at = find_own("positions");
  if (at == nullptr || at->dtype != DType::kI32 || at->shape.size() != 1 || at->shape[0] < 1 ||
      at->shape[0] > n_positions) {
    return error("head {} has no positions of 1..{} slots", head, n_positions);
  }
  positions.resize(static_cast<size_t>(at->shape[0]));
  std::memcpy(positions.data(), at->bytes, at->n_bytes);
  const auto is_behind = [](int32_t a, int32_t b) { return a >= b; };
  if (positions[0] < 0 || positions.back() != n_positions - 1 ||
      std::adjacent_find(positions.begin(), positions.end(), is_behind) != positions.end()) {
    return error("positions of head {} do not ascend to {}", head, n_positions - 1);
  }
  const TensorInfo* rows = find_own("open");
  const Shape least = {1, open.width()}, most = {open.most_rows(), open.width()};
  if (rows == nullptr || rows->dtype != DType::kF32 || rows->shape.size() != 2 ||
      rows->shape[0] < 1 || rows->shape[0] > most[0] || rows->shape[1] != most[1]) {
    return error("head {} has no open slot of {} to {}", head, to_string(least), to_string(most));
  }
  open.rows().resize(rows->n_bytes / sizeof(float));
  std::memcpy(open.rows().data(), rows->bytes, rows->n_bytes);
  for (size_t i = 0; i < open.rows().size(); ++i) {
    const float x = open.rows()[i];
    const bool is_weight = i % static_cast<size_t>(open.width()) == 0;
    if (!std::isfinite(x) || (is_weight && x <= 0)) {
      return error("the open slot of head {} has a number that cannot be", head);
    }
  }
  return slots.restore(at->shape[0], find_own);
}

}  // namespace quern
