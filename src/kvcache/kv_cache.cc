// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_cache.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

// Positions that stay as they came behind those that are read so, for `truncate`.
constexpr int64_t kKept = kKeyBlock;

// Row `row` of a turned block.
template <class T>
void put_turned(const T* x, int64_t n, int64_t row, T* block) {
  for (int64_t c = 0; c < n; ++c) block[c * kKeyBlock + row] = x[c];
}

}  // namespace

LayerKv::LayerKv(KvShape shape, int64_t capacity, std::shared_ptr<const KvRecipe> recipe)
    : shape_(shape), recipe_(std::move(recipe)), exact_(recipe_->exact), capacity_(capacity) {
  QUERN_CHECK(exact_ == DType::kF16 || exact_ == DType::kF32);
  if (!recipe_->is_coded()) {
    make_room(0, capacity);
    return;
  }
  key_page_ = recipe_->keys->page_bytes(KvSide::kKeys, shape.d_head);
  page_bytes_ = key_page_ + recipe_->values->page_bytes(KvSide::kValues, shape.d_head);
  if (recipe_->rotate) {
    rotation_ = std::make_shared<const HadamardPlan>(*HadamardPlan::make(shape.d_head));
  }
}

// Room for positions [exact_begin_, position + n), where those that no query from `position` on
// reads as they came have made way.
void LayerKv::make_room(int64_t position, int64_t n) {
  const int64_t head_before = head_bytes(), begin_before = exact_begin_;
  const int64_t needed = recipe_->coded_before(position) - kKept;
  exact_begin_ = std::max(exact_begin_, std::max<int64_t>(needed, 0));
  const int64_t room = round_up(position + n - exact_begin_, kKeyBlock);
  const int64_t block_bytes = kKeyBlock * shape_.d_head * dtype_bits(exact_) / 8;
  const int64_t moved = (exact_begin_ - begin_before) / kKeyBlock * block_bytes;
  const int64_t kept =
      round_up(std::max<int64_t>(position - exact_begin_, 0), kKeyBlock) / kKeyBlock * block_bytes;
  const bool grows = room > exact_capacity_;
  if (grows) exact_capacity_ = room;
  if (!grows && moved == 0) return;
  for (AlignedVector<std::byte>* store : {&keys_, &values_}) {
    AlignedVector<std::byte> larger;
    if (grows) larger.resize(static_cast<size_t>(shape_.n_kv_heads * head_bytes()));
    AlignedVector<std::byte>& to = grows ? larger : *store;
    for (int64_t head = 0; head < shape_.n_kv_heads && kept > 0; ++head) {
      std::copy_n(store->data() + head * head_before + moved, kept,
                  to.data() + head * head_bytes());
    }
    if (grows) *store = std::move(larger);
  }
}

void LayerKv::put(int64_t position, MatrixView<const float> k, MatrixView<const float> v) {
  QUERN_CHECK(position == length_ && position + k.rows <= capacity_);
  if (recipe_->is_coded()) make_room(position, k.rows);
  length_ = position + k.rows;
  const int64_t sealed = recipe_->coded_before(length_ - 1) / kKeyBlock;
  const auto n_pages = static_cast<size_t>(sealed * shape_.n_kv_heads * page_bytes_);
  if (n_pages > pages_.capacity()) pages_.reserve(n_pages + n_pages / 8);  // doubling would show
  pages_.resize(n_pages);
  const int64_t heads = shape_.n_kv_heads, grain = k.rows < kKeyBlock ? heads : 1;
  parallel_for(heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      put_head(head, position, k, v);
      for (int64_t block = n_sealed_; block < sealed; ++block) seal(head, block);
    }
  });
  n_sealed_ = sealed;
}

void LayerKv::put_head(int64_t head, int64_t position, MatrixView<const float> k,
                       MatrixView<const float> v) {
  const int64_t d = shape_.d_head;
  std::byte* keys = keys_.data() + head * head_bytes();
  std::byte* values = values_.data() + head * head_bytes();
  for (int64_t i = 0; i < k.rows; ++i) {
    const int64_t p = position + i - exact_begin_, row = p % kKeyBlock;
    const int64_t block = p / kKeyBlock * kKeyBlock * d;
    const float *key = k.row(i) + head * d, *value = v.row(i) + head * d;
    if (exact_ == DType::kF32) {
      put_turned(key, d, row, reinterpret_cast<float*>(keys) + block);
      std::copy_n(value, d, reinterpret_cast<float*>(values) + p * d);
      continue;
    }
    kernels().float_to_f16(value, d, values + p * d * 2);
    for (int64_t c = 0; c < d; c += kKeyBlock) {
      uint16_t halves[kKeyBlock];
      const int64_t n = std::min(kKeyBlock, d - c);
      kernels().float_to_f16(key + c, n, halves);
      put_turned(halves, n, row, reinterpret_cast<uint16_t*>(keys) + block + c * kKeyBlock);
    }
  }
}

void LayerKv::seal(int64_t head, int64_t block) {
  thread_local AlignedVector<float> scratch;
  scratch.resize(static_cast<size_t>(kKeyBlock * shape_.d_head));
  const Exact exact(*this, head);
  std::byte* codes = page(head, block);
  recipe_->keys->encode(KvSide::kKeys, shape_.d_head, exact.keys(block, scratch.data()), codes);
  recipe_->values->encode(KvSide::kValues, shape_.d_head, exact.values(block, scratch.data()),
                          codes + key_page_);
}

int64_t LayerKv::bytes_read(int64_t first, int64_t last) const {
  const int64_t coded = std::clamp(recipe_->coded_before(last - 1), first, last);
  const int64_t pages = ceil_div(coded, kKeyBlock) - first / kKeyBlock;
  const int64_t exact_row = 2 * shape_.d_head * dtype_bits(exact_) / 8;
  return shape_.n_kv_heads *
         ((coded > first ? pages * page_bytes_ : 0) + (last - coded) * exact_row);
}

void LayerKv::truncate(int64_t length) {
  QUERN_CHECK(can_truncate(length));
  length_ = length;
  n_sealed_ = length > 0 ? recipe_->coded_before(length - 1) / kKeyBlock : 0;
  if (length == 0) exact_begin_ = 0;
}

const float* LayerKv::Codes::keys(int64_t block, float* scratch) const {
  kv_.recipe_->keys->decode(KvSide::kKeys, kv_.shape_.d_head, kv_.page(head_, block), scratch);
  return scratch;
}

const float* LayerKv::Codes::values(int64_t block, float* scratch) const {
  kv_.recipe_->values->decode(KvSide::kValues, kv_.shape_.d_head,
                              kv_.page(head_, block) + kv_.key_page_, scratch);
  return scratch;
}

LayerKv::Exact::Exact(const LayerKv& kv, int64_t head)
    : stored_(kv.keys_.data() + head * kv.head_bytes(), kv.values_.data() + head * kv.head_bytes(),
              kv.exact_, kv.exact_capacity_, kv.shape_.d_head),
      first_block_(kv.exact_begin_ / kKeyBlock) {}

const float* LayerKv::Exact::keys(int64_t block, float* scratch) const {
  return stored_.keys(block - first_block_, scratch);
}

const float* LayerKv::Exact::values(int64_t block, float* scratch) const {
  return stored_.values(block - first_block_, scratch);
}

KvCache::KvCache(const std::vector<KvShape>& layers, int64_t capacity, const KvRecipe& recipe)
    : capacity_(capacity) {
  const auto shared = std::make_shared<const KvRecipe>(recipe);
  for (const KvShape& shape : layers) layers_.emplace_back(shape, capacity, shared);
}

Status KvCache::truncate(int64_t length) {
  for (const LayerKv& layer : layers_) {
    if (!layer.can_truncate(length)) {
      return error("the cache cannot go back to {} of {} tokens: what came before is coded", length,
                   length_);
    }
  }
  for (LayerKv& layer : layers_) layer.truncate(length);
  length_ = length;
  return {};
}

size_t KvCache::n_bytes() const {
  size_t total = 0;
  for (const LayerKv& layer : layers_) total += layer.n_bytes();
  return total;
}

}  // namespace quern
