// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_layer_state.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/checked.h"
#include "formats/checkpoint.h"
#include "kvcache/kv_cache.h"

namespace quern {
namespace {

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
    if ((half & 0x7c00u) == 0x7c00u) return false;
  }
  return true;
}

// n entries of `width` bytes, the steps between them in entries.
void copy_strided(int64_t width, const std::byte* from, int64_t from_step, std::byte* to,
                  int64_t to_step, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(to + i * to_step * width, from + i * from_step * width, static_cast<size_t>(width));
  }
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

}  // namespace

std::vector<KvStateTensor> LayerKv::state() const {
  const int64_t begin = std::max(exact_begin_, exact_needed(length_)), n = length_ - begin;
  const int64_t heads = shape_.n_kv_heads, row = row_bytes(), width = dtype_bits(exact_) / 8;
  const Shape shape = {heads, n, shape_.d_head};
  KvStateTensor keys{"keys", exact_, shape, {}}, values{"values", exact_, shape, {}};
  keys.bytes.resize(static_cast<size_t>(heads * n * row));
  values.bytes.resize(keys.bytes.size());
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t p = begin + i - exact_begin_, block = p / kKeyBlock, at = p % kKeyBlock;
      std::byte* key = keys.bytes.data() + (head * n + i) * row;
      copy_strided(width, exact_blocks_.at(block, key_part(head)) + at * width, kKeyBlock, key, 1,
                   shape_.d_head);
      std::memcpy(values.bytes.data() + (head * n + i) * row,
                  exact_blocks_.at(block, value_part(head)) + at * row, static_cast<size_t>(row));
    }
  }
  std::vector<KvStateTensor> tensors;
  tensors.push_back(std::move(keys));
  tensors.push_back(std::move(values));
  if (!recipe_->is_coded()) return tensors;
  KvStateTensor pages{"pages", DType::kU8, {pages_.size(), heads, page_bytes_}, {}};
  for (int64_t block = 0; block < pages_.size(); ++block) {
    const std::byte* page = pages_.at(block);
    pages.bytes.insert(pages.bytes.end(), page, page + heads * page_bytes_);
  }
  tensors.push_back(std::move(pages));
  return tensors;
}

Status LayerKv::restore(int64_t length, const KvFindTensor& find) {
  QUERN_CHECK(length_ == 0 && length <= capacity_);
  const int64_t heads = shape_.n_kv_heads, row = row_bytes(), width = dtype_bits(exact_) / 8;
  const int64_t coded = recipe_->coded_before(length - 1);
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
      copy_strided(width, keys->bytes + (head * n + i) * row, 1,
                   exact_blocks_.own(block, key_part(head)) + at * width, kKeyBlock, shape_.d_head);
      std::memcpy(exact_blocks_.own(block, value_part(head)) + at * row,
                  values->bytes + (head * n + i) * row, static_cast<size_t>(row));
    }
  }
  length_ = length;
  if (recipe_->is_coded()) QUERN_TRY(restore_pages(find));
  return {};
}

Status LayerKv::restore_pages(const KvFindTensor& find) {
  const int64_t n = recipe_->coded_before(length_ - 1) / kKeyBlock, heads = shape_.n_kv_heads;
  QUERN_ASSIGN(const TensorInfo* pages,
               tensor_of(find("pages"), "pages", DType::kU8, {n, heads, page_bytes_}));
  pages_.resize(n);
  pages_.make_own(0, n);
  const int64_t d = shape_.d_head;
  AlignedVector<float> scratch(static_cast<size_t>(kKeyBlock * d));
  const auto is_sound = [&] {
    return std::all_of(scratch.begin(), scratch.end(), [](float x) { return std::isfinite(x); });
  };
  for (int64_t block = 0; block < n; ++block) {
    const int64_t n_bytes = heads * page_bytes_;
    std::memcpy(pages_.own(block), pages->bytes + block * n_bytes, static_cast<size_t>(n_bytes));
    for (int64_t head = 0; head < heads; ++head) {
      recipe_->keys->decode(KvSide::kKeys, d, page(head, block), scratch.data());
      const bool are_keys_sound = is_sound();
      recipe_->values->decode(KvSide::kValues, d, page(head, block) + key_page_, scratch.data());
      if (!are_keys_sound || !is_sound()) {
        return error("a page with a number that is none");
      }
    }
  }
  return {};
}

}  // namespace quern
