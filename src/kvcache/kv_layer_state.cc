// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_layer_state.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/checked.h"
#include "base/float_types.h"
#include "formats/checkpoint.h"
#include "kvcache/kv_cache.h"

namespace quern {
namespace {

// Whether all are numbers, in bfloat16 such as a cache rounds to.
bool is_finite(DType dtype, const std::byte* x, int64_t n) {
  if (dtype == DType::kF32) {
    float value = 0;
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(&value, x + 4 * i, 4);
      if (!std::isfinite(value)) return false;
    }
    return true;
  }
  uint16_t half = 0;
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(&half, x + 2 * i, 2);
    if (dtype != DType::kBF16) {
      if ((half & 0x7c00u) == 0x7c00u) return false;
      continue;
    }
    const float size = std::fabs(bf16_to_float(half));
    if (size != 0 && !(size >= kLeastBf16 && size <= kMostBf16)) return false;
  }
  return true;
}

Result<const TensorInfo*> tensor_of(const TensorInfo* tensor, std::string_view name, DType dtype,
                                    const Shape& shape) {
  if (tensor == nullptr) return error("no {}", name);
  if (tensor->dtype != dtype || tensor->shape != shape) {
    return error("{} is {} {}, expected {} {}", name, dtype_name(tensor->dtype),
                 to_string(tensor->shape), dtype_name(dtype), to_string(shape));
  }
  return tensor;
}

// Rows of floats; none at all if absent.
Status restore_rows(const TensorInfo* tensor, std::string_view name, int64_t most, int64_t width,
                    std::vector<float>& rows) {
  if (tensor == nullptr) return {};
  if (tensor->dtype != DType::kF32 || tensor->shape.size() != 2 || tensor->shape[0] > most ||
      tensor->shape[1] != width ||
      !is_finite(DType::kF32, tensor->bytes, static_cast<int64_t>(tensor->n_bytes / 4))) {
    return error("{} is {} {}, expected at most {} rows of {} numbers", name,
                 dtype_name(tensor->dtype), to_string(tensor->shape), most, width);
  }
  rows.resize(tensor->n_bytes / 4);
  if (!rows.empty()) std::memcpy(rows.data(), tensor->bytes, tensor->n_bytes);
  return {};
}

// [n_heads, n], whatever the lists hold.
template <class T>
KvStateTensor by_head(std::string name, DType dtype, const std::vector<std::vector<T>>& lists) {
  std::vector<T> all;
  for (const std::vector<T>& list : lists) all.insert(all.end(), list.begin(), list.end());
  KvStateTensor tensor = KvStateTensor::of(std::move(name), dtype, all);
  tensor.shape = {static_cast<int64_t>(lists.size()), static_cast<int64_t>(lists[0].size())};
  return tensor;
}

void add_rows(std::string name, const std::vector<float>& rows, int64_t width,
              std::vector<KvStateTensor>& tensors) {
  if (rows.empty()) return;
  KvStateTensor tensor = KvStateTensor::of(std::move(name), DType::kF32, rows);
  tensor.shape = {static_cast<int64_t>(rows.size()) / width, width};
  tensors.push_back(std::move(tensor));
}

}  // namespace

void KvSlots::add_state(std::vector<KvStateTensor>& tensors) const {
  tensors.push_back(by_head("positions", DType::kI32, positions));
  tensors.push_back(by_head("scores", DType::kF32, scores));
  add_rows("moving", moving, moving_width, tensors);
  add_rows("queries", queries, query_width, tensors);
}

Status KvSlots::restore(const KvPolicy& policy, int64_t n_positions, int64_t of_queries,
                        int64_t of_keys, const KvFindTensor& find) {
  const TensorInfo* found = find("positions");
  if (found == nullptr || found->shape.size() != 2) return error("no positions of two axes");
  const auto heads = static_cast<int64_t>(positions.size());
  const int64_t n = found->shape[1];
  if (n < 1 || n > n_positions) return error("{} slots of {} positions", n, n_positions);
  QUERN_ASSIGN(const TensorInfo* at, tensor_of(found, "positions", DType::kI32, {heads, n}));
  QUERN_ASSIGN(const TensorInfo* sums,
               tensor_of(find("scores"), "scores", DType::kF32, {heads, n}));
  for (size_t head = 0; head < positions.size(); ++head) {
    positions[head].resize(static_cast<size_t>(n));
    scores[head].resize(static_cast<size_t>(n));
    const size_t n_bytes = static_cast<size_t>(n) * 4;
    std::memcpy(positions[head].data(), at->bytes + head * n_bytes, n_bytes);
    std::memcpy(scores[head].data(), sums->bytes + head * n_bytes, n_bytes);
    int64_t before = -1;
    for (const int32_t position : positions[head]) {
      if (position <= before || position >= n_positions) {
        return error("position {} behind {} of {}", position, before, n_positions);
      }
      before = position;
    }
  }
  if (!is_finite(DType::kF32, sums->bytes, heads * n)) return error("scores that are no numbers");
  n_dropped = n_positions - n;
  const TensorInfo* rows = find("queries");
  is_open = rows != nullptr;
  if (is_open && (n_dropped > 0 || policy.n_prompt_queries() == 0)) {
    return error("queries of a prompt that has ended");
  }
  query_width = of_queries;
  moving_width = of_keys;
  const int64_t most = std::min(n_positions, policy.n_prompt_queries());
  QUERN_TRY(restore_rows(rows, "queries", most, query_width, queries));
  QUERN_TRY(restore_rows(find("moving"), "moving", policy.n_moving(), moving_width, moving));
  if (n_moving() != std::min(n_positions, policy.n_moving())) {
    return error("{} rows of moving keys, expected {}", n_moving(), policy.n_moving());
  }
  return {};
}

std::vector<KvStateTensor> LayerKv::state() const {
  if (merge() != nullptr) {
    std::vector<KvStateTensor> tensors;
    for (size_t i = 0; i < heads_.size(); ++i) {
      heads_[i].add_state(static_cast<int64_t>(i), tensors);
    }
    return tensors;
  }
  const int64_t begin = std::max(exact_begin_, exact_needed(length_)), n = length_ - begin;
  const int64_t heads = shape_.n_kv_heads, row = row_bytes();
  const auto width = static_cast<size_t>(dtype_bits(exact_)) / 8;
  const Shape shape = {heads, n, shape_.d_head};
  KvStateTensor keys{"keys", exact_, shape, {}}, values{"values", exact_, shape, {}};
  keys.bytes.resize(static_cast<size_t>(heads * n * row));
  values.bytes.resize(keys.bytes.size());
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t p = begin + i - exact_begin_, block = p / kKeyBlock, at = p % kKeyBlock;
      std::byte* key = keys.bytes.data() + (head * n + i) * row;
      std::byte* value = values.bytes.data() + (head * n + i) * row;
      const std::byte* from_keys = exact_blocks_.at(block, key_part(head));
      const std::byte* from_values = exact_blocks_.at(block, value_part(head));
      for (int64_t c = 0; c < shape_.d_head; ++c) {
        std::memcpy(key + c * width, from_keys + key_place(at, c), width);
        std::memcpy(value + c * width, from_values + value_place(at, c), width);
      }
    }
  }
  std::vector<KvStateTensor> tensors;
  tensors.push_back(std::move(keys));
  tensors.push_back(std::move(values));
  if (policy() != nullptr) slots_.add_state(tensors);
  if (maps() != nullptr) {
    const int64_t n = maps()->n_features();
    tensors.push_back(KvStateTensor::of("absorbed", DType::kF32, absorbed_.values()));
    tensors.back().shape = {heads, n, shape_.d_head};
    tensors.push_back(KvStateTensor::of("absorbed_weights", DType::kF32, absorbed_.weights()));
    tensors.back().shape = {heads, n};
  }
  if (recipe_->is_coded()) add_pages(tensors);
  return tensors;
}

void LayerKv::add_pages(std::vector<KvStateTensor>& tensors) const {
  const int64_t heads = shape_.n_kv_heads;
  if (adapts()) add_rows("queries", slots_.queries, slots_.query_width, tensors);
  KvStateTensor pages{"pages", DType::kU8, {pages_.size(), heads, page_bytes_}, {}};
  for (int64_t block = 0; block < pages_.size(); ++block) {
    for (int64_t head = 0; head < heads; ++head) {
      const std::byte* from = pages_.at(block, head);
      pages.bytes.insert(pages.bytes.end(), from, from + page_bytes_);
    }
  }
  tensors.push_back(std::move(pages));
  if (adapts()) {
    KvStateTensor varying{"varying", DType::kU8, {0}, {}};
    for (int64_t block = 0; block < pages_.size(); ++block) {
      for (int64_t part = 0; part < 2 * heads; ++part) {
        const std::span<const std::byte> bytes = varying_.at(block, part);
        varying.bytes.insert(varying.bytes.end(), bytes.begin(), bytes.end());
      }
    }
    varying.shape = {static_cast<int64_t>(varying.bytes.size())};
    tensors.push_back(std::move(varying));
  }
  if (sinks_ != nullptr) {
    tensors.push_back(KvStateTensor::of("sinks", DType::kF16, sinks_->halves()));
    tensors.back().shape = {heads, 2, recipe_->sinks, shape_.d_head};
  }
  if (text_ != nullptr && !text_->keys.empty()) {
    tensors.push_back(KvStateTensor::of("key_tables", DType::kF32, text_->keys));
  }
  if (text_ != nullptr && !text_->values.empty()) {
    tensors.push_back(KvStateTensor::of("value_tables", DType::kF32, text_->values));
  }
}

Status LayerKv::restore(int64_t n_positions, const KvFindTensor& find) {
  QUERN_CHECK(length_ == 0 && n_positions <= capacity_);
  for (size_t i = 0; i < heads_.size(); ++i) {
    QUERN_TRY(heads_[i].restore(static_cast<int64_t>(i), n_positions, find));
  }
  if (merge() != nullptr) return {};
  if (policy() != nullptr) {
    QUERN_TRY(
        slots_.restore(*policy(), n_positions, shape_.query_width(), shape_.key_width(), find));
  }
  if (maps() != nullptr) QUERN_TRY(restore_absorbed(find));
  const int64_t length = n_positions - slots_.n_dropped;
  const int64_t heads = shape_.n_kv_heads, row = row_bytes();
  const auto width = static_cast<size_t>(dtype_bits(exact_)) / 8;
  length_ = length;
  const int64_t coded = n_pages() * kKeyBlock;
  const TensorInfo* found = find("keys");
  if (found == nullptr || found->shape.size() != 3) return error("no keys of three axes");
  const int64_t n = found->shape[1], begin = length - n;
  if (n < 0 || begin < 0 || begin > coded || begin % kKeyBlock != 0) {
    return error("{} of {} positions as they came; expected all from one page before {} on", n,
                 length, coded);
  }
  const Shape shape = {heads, n, shape_.d_head};
  QUERN_ASSIGN(const TensorInfo* keys, tensor_of(found, "keys", exact_, shape));
  QUERN_ASSIGN(const TensorInfo* values, tensor_of(find("values"), "values", exact_, shape));
  for (const TensorInfo* tensor : {keys, values}) {
    if (!is_finite(exact_, tensor->bytes, heads * n * shape_.d_head)) {
      return error("keys or values with a number that is none");
    }
  }
  exact_begin_ = begin;
  exact_blocks_.resize(ceil_div(n, kKeyBlock));
  exact_blocks_.make_own(0, exact_blocks_.size());
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t block = i / kKeyBlock, at = i % kKeyBlock;
      const std::byte* key = keys->bytes + (head * n + i) * row;
      const std::byte* value = values->bytes + (head * n + i) * row;
      std::byte* to_keys = exact_blocks_.own(block, key_part(head));
      std::byte* to_values = exact_blocks_.own(block, value_part(head));
      for (int64_t c = 0; c < shape_.d_head; ++c) {
        std::memcpy(to_keys + key_place(at, c), key + c * width, width);
        std::memcpy(to_values + value_place(at, c), value + c * width, width);
      }
    }
  }
  if (recipe_->is_coded()) QUERN_TRY(restore_pages(find));
  return {};
}

Status LayerKv::restore_absorbed(const KvFindTensor& find) {
  const int64_t heads = shape_.n_kv_heads, n = maps()->n_features();
  QUERN_ASSIGN(const TensorInfo* values,
               tensor_of(find("absorbed"), "absorbed", DType::kF32, {heads, n, shape_.d_head}));
  QUERN_ASSIGN(const TensorInfo* weights,
               tensor_of(find("absorbed_weights"), "absorbed_weights", DType::kF32, {heads, n}));
  if (!is_finite(DType::kF32, values->bytes, heads * n * shape_.d_head) ||
      !is_finite(DType::kF32, weights->bytes, heads * n)) {
    return error("absorbed tokens with a number that is none");
  }
  std::memcpy(absorbed_.values().data(), values->bytes, values->n_bytes);
  std::memcpy(absorbed_.weights().data(), weights->bytes, weights->n_bytes);
  const auto is_negative = [](float z) { return z < 0; };
  if (std::any_of(absorbed_.weights().begin(), absorbed_.weights().end(), is_negative)) {
    return error("absorbed tokens with a negative weight");
  }
  return {};
}

// What goes by queries.
Status LayerKv::restore_varying(const KvFindTensor& find) {
  slots_.query_width = shape_.query_width();
  const int64_t most = std::min(length_, recipe_->n_queries());
  QUERN_TRY(restore_rows(find("queries"), "queries", most, slots_.query_width, slots_.queries));
  const TensorInfo* tensor = find("varying");
  if (tensor == nullptr || tensor->dtype != DType::kU8 || tensor->shape.size() != 1) {
    return error("no varying of bytes");
  }
  std::span<const std::byte> rest(tensor->bytes, tensor->n_bytes);
  for (int64_t block = 0; block < pages_.size(); ++block) {
    std::vector<std::vector<std::byte>> parts(static_cast<size_t>(2 * shape_.n_kv_heads));
    for (int64_t head = 0; head < shape_.n_kv_heads; ++head) {
      for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
        if (!is_varying(side)) continue;
        QUERN_ASSIGN(const int64_t n, codec(side, head).size_of(shape_.d_head, rest));
        const std::span<const std::byte> page = rest.first(static_cast<size_t>(n));
        parts[static_cast<size_t>(varying_part(side, head))].assign(page.begin(), page.end());
        rest = rest.subspan(page.size());
      }
    }
    varying_.set(block, parts);
  }
  return rest.empty() ? Status() : error("{} bytes behind the last page", rest.size());
}

Status LayerKv::restore_pages(const KvFindTensor& find) {
  const int64_t n = n_pages(), heads = shape_.n_kv_heads;
  QUERN_ASSIGN(const TensorInfo* pages,
               tensor_of(find("pages"), "pages", DType::kU8, {n, heads, page_bytes_}));
  if (n > 0 && recipe_->sinks > 0) {
    QUERN_ASSIGN(const TensorInfo* sinks, tensor_of(find("sinks"), "sinks", DType::kF16,
                                                    {heads, 2, recipe_->sinks, shape_.d_head}));
    sinks_ = std::make_shared<KvSinks>(recipe_->sinks, heads, shape_.d_head);
    std::memcpy(sinks_->halves().data(), sinks->bytes, sinks->n_bytes);
    if (!is_finite(DType::kF16, sinks->bytes, static_cast<int64_t>(sinks->n_bytes / 2))) {
      return error("sinks with a number that is none");
    }
  }
  if (n > 0 && recipe_->has_text_tables()) {
    auto text = std::make_shared<KvTextTables>();
    const auto take = [&](const char* name, KvSide side, std::vector<float>& to) -> Status {
      const TensorInfo* tensor = find(name);
      if (tensor == nullptr || tensor->dtype != DType::kF32 || tensor->shape.size() != 1 ||
          !is_finite(DType::kF32, tensor->bytes, tensor->shape[0])) {
        return error("no {} of numbers", name);
      }
      to.resize(tensor->n_bytes / 4);
      if (!to.empty()) std::memcpy(to.data(), tensor->bytes, tensor->n_bytes);
      return bind_text(side, *text);
    };
    if (recipe_->keys->tables() == KvTables::kOfText) {
      QUERN_TRY(take("key_tables", KvSide::kKeys, text->keys));
    }
    if (recipe_->values->tables() == KvTables::kOfText) {
      QUERN_TRY(take("value_tables", KvSide::kValues, text->values));
    }
    text_ = std::move(text);
  }
  pages_.resize(n);
  pages_.make_own(0, n);
  if (adapts()) QUERN_TRY(restore_varying(find));
  const int64_t d = shape_.d_head;
  AlignedVector<float> numbers(static_cast<size_t>(kKeyBlock * d));
  KvScratchMemory scratch;
  const auto is_sound = [&](const KvCodec& codec, KvSide side, const std::byte* page) {
    const KvOperand read = codec.read(side, d, page, nullptr, scratch.view(d));
    const float* x = floats_of(read, kKeyBlock * d, numbers.data());
    return std::all_of(x, x + kKeyBlock * d, [](float value) { return std::isfinite(value); });
  };
  for (int64_t block = 0; block < n; ++block) {
    for (int64_t head = 0; head < heads; ++head) {
      const std::byte* from = pages->bytes + (block * heads + head) * page_bytes_;
      std::copy_n(from, page_bytes_, pages_.own(block, head));
      for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
        if (!is_sound(codec(side, head), side, page(side, head, block))) {
          return error("a page with a number that is none");
        }
      }
    }
  }
  return {};
}

}  // namespace quern
