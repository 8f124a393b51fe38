// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_cache.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

// Row `row` of a turned block.
template <class T>
void put_turned(const T* x, int64_t n, int64_t row, T* block) {
  for (int64_t c = 0; c < n; ++c) block[c * kKeyBlock + row] = x[c];
}

// A row of n numbers to bfloat16, n even; what is no number becomes the largest, so that a weight
// of zero hides it.
void to_bf16(const float* x, int64_t n, AlignedVector<uint16_t>& y) {
  thread_local AlignedVector<float> rounded;
  rounded.resize(static_cast<size_t>(n));
  y.resize(static_cast<size_t>(n));
  kernels().round_bf16(x, n, rounded.data());
  for (size_t i = 0; i < y.size(); ++i) {
    const float value = rounded[i] == rounded[i] ? rounded[i] : kMostBf16;
    y[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
  }
}

// Row `row` of a block of keys in pairs, and of one of values.
void put_pairs(const uint16_t* x, int64_t n, int64_t row, std::byte* block) {
  for (int64_t c = 0; c < n; c += 2) {
    std::memcpy(block + pair_place(kKeyBlock, c, row) * 2, x + c, 4);
  }
}
void put_halves_of_pairs(const uint16_t* x, int64_t n, int64_t row, std::byte* block) {
  auto* to = reinterpret_cast<uint16_t*>(block) + pair_place(n, row, 0);
  for (int64_t c = 0; c < n; ++c) to[2 * c] = x[c];
}

}  // namespace

LayerKv::LayerKv(KvShape shape, int64_t capacity, std::shared_ptr<const KvRecipe> recipe)
    : shape_(std::move(shape)),
      recipe_(std::move(recipe)),
      exact_(recipe_->exact),
      capacity_(capacity),
      exact_blocks_(kKeyBlock * row_bytes(), shape_.n_kv_heads * 2) {
  QUERN_CHECK(exact_ == DType::kF16 || exact_ == DType::kF32 ||
              (exact_ == DType::kBF16 && recipe_->is_plain() && shape_.d_head % 2 == 0));
  QUERN_CHECK(!recipe_->codes_unturned || shape_.rope != nullptr);
  if (!recipe_->codes_unturned) shape_.rope = nullptr;
  forget();
  if (recipe_->merge != nullptr) return;  // how much heads will hold the text decides
  if (!recipe_->is_coded()) {
    const int64_t most =
        policy() == nullptr ? capacity : std::min(capacity, policy()->most_slots());
    if (policy() == nullptr || most < capacity) exact_blocks_.reserve(ceil_div(most, kKeyBlock));
    return;
  }
  const auto fixed_bytes = [&](const KvCodec& codec, KvSide side) {
    return is_varying(side) ? 0 : codec.page_bytes(side, shape_.d_head);
  };
  key_page_ = fixed_bytes(*recipe_->keys, KvSide::kKeys);
  page_bytes_ = key_page_ + fixed_bytes(*recipe_->values, KvSide::kValues);
  if (adapts()) varying_ = KvVaryingList(2 * shape_.n_kv_heads);
  pages_ = KvBlockList(page_bytes_, shape_.n_kv_heads);
  if (recipe_->rotate) {
    rotation_ = std::make_shared<const HadamardPlan>(*HadamardPlan::make(shape_.d_head));
  }
}

// Nothing known of the text any more, beside keys and values.
void LayerKv::forget() {
  heads_.clear();
  for (int64_t i = 0; merge() != nullptr && i < shape_.n_kv_heads; ++i) {
    heads_.emplace_back(shape_, capacity_, recipe_);
  }
  slots_ = KvSlots();
  if (policy() == nullptr) return;
  slots_ = KvSlots(*policy(), shape_.n_kv_heads);
  if (!policy()->absorbs()) return;
  QUERN_CHECK(shape_.maps != nullptr);
  absorbed_ = KvAbsorbed(shape_.n_kv_heads, shape_.maps->n_features(), shape_.d_head);
}

// Room for slots [exact_begin_, slot + n), where those that no query from `slot` on reads as they
// came have made way.
void LayerKv::make_room(int64_t slot, int64_t n) {
  const int64_t begin = std::max(exact_begin_, coded_slots(slot) - kKept);
  exact_blocks_.drop_front((begin - exact_begin_) / kKeyBlock);
  exact_begin_ = begin;
  const int64_t n_blocks = ceil_div(slot + n - exact_begin_, kKeyBlock);
  if (n_blocks > exact_blocks_.size()) exact_blocks_.resize(n_blocks);
  exact_blocks_.make_own((slot - exact_begin_) / kKeyBlock, exact_blocks_.size());
}

void LayerKv::put(int64_t position, MatrixView<const float> k, MatrixView<const float> v) {
  const int64_t slot = slot_of(position);
  QUERN_CHECK(merge() == nullptr && slot == length_ && position + k.rows <= capacity_);
  make_room(slot, k.rows);
  length_ = slot + k.rows;
  if (policy() != nullptr) slots_.append(position, k.rows);
  const int64_t first = pages_.size();
  pages_.resize(coded_slots(length_ - 1) / kKeyBlock);
  const int64_t heads = shape_.n_kv_heads, grain = k.rows < kKeyBlock ? heads : 1;
  parallel_for(heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) put_head(head, slot, k, v);
  });
  seal_from(first);
}

void LayerKv::seal_from(int64_t first, std::span<const KvAttention> seen) {
  if (first == pages_.size()) return;
  if (first == 0 && recipe_->sinks > 0) {
    sinks_ = std::make_shared<KvSinks>(recipe_->sinks, shape_.n_kv_heads, shape_.d_head);
  }
  if (first == 0 && recipe_->has_text_tables()) fit_text();
  std::vector<std::vector<std::vector<std::byte>>> varying(
      static_cast<size_t>(pages_.size() - first),
      std::vector<std::vector<std::byte>>(static_cast<size_t>(2 * shape_.n_kv_heads)));
  parallel_for(shape_.n_kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      for (int64_t block = first; block < pages_.size(); ++block) {
        KvAttention of_page;
        if (!seen.empty()) {
          of_page = seen[static_cast<size_t>(head)];
          of_page.weights += block * kKeyBlock;
        }
        seal(head, block, of_page, varying[static_cast<size_t>(block - first)]);
      }
    }
  });
  for (int64_t block = first; adapts() && block < pages_.size(); ++block) {
    varying_.set(block, varying[static_cast<size_t>(block - first)]);
  }
}

void LayerKv::put_head(int64_t head, int64_t slot, MatrixView<const float> k,
                       MatrixView<const float> v) {
  for (int64_t i = 0; i < k.rows; ++i) {
    put_key(head, slot + i, k.row(i) + head * shape_.d_head);
    put_value(head, slot + i, v.row(i) + head * shape_.d_head);
  }
}

void LayerKv::put_value(int64_t head, int64_t slot, const float* value) {
  const int64_t d = shape_.d_head, p = slot - exact_begin_, row = p % kKeyBlock;
  std::byte* values = exact_blocks_.own(p / kKeyBlock, value_part(head));
  if (exact_ == DType::kF32) {
    std::copy_n(value, d, reinterpret_cast<float*>(values) + row * d);
  } else if (exact_ == DType::kF16) {
    kernels().float_to_f16(value, d, values + row * d * 2);
  } else {
    thread_local AlignedVector<uint16_t> bits;
    to_bf16(value, d, bits);
    put_halves_of_pairs(bits.data(), d, row, values);
  }
}

void LayerKv::put_key(int64_t head, int64_t slot, const float* key) {
  const int64_t d = shape_.d_head, p = slot - exact_begin_, row = p % kKeyBlock;
  std::byte* keys = exact_blocks_.own(p / kKeyBlock, key_part(head));
  if (exact_ == DType::kF32) return put_turned(key, d, row, reinterpret_cast<float*>(keys));
  if (exact_ == DType::kBF16) {
    thread_local AlignedVector<uint16_t> bits;
    to_bf16(key, d, bits);
    return put_pairs(bits.data(), d, row, keys);
  }
  for (int64_t c = 0; c < d; c += kKeyBlock) {
    uint16_t halves[kKeyBlock];
    const int64_t n = std::min(kKeyBlock, d - c);
    kernels().float_to_f16(key + c, n, halves);
    put_turned(halves, n, row, reinterpret_cast<uint16_t*>(keys) + c * kKeyBlock);
  }
}

Status LayerKv::bind_text(KvSide side, KvTextTables& text) const {
  const bool is_keys = side == KvSide::kKeys;
  const KvCodec& codec = is_keys ? *recipe_->keys : *recipe_->values;
  const KvFitRows rows{side, shape_.n_kv_heads, shape_.d_head};
  for (int64_t head = 0; head < shape_.n_kv_heads; ++head) {
    QUERN_ASSIGN(auto bound, codec.with_tables(rows, head, is_keys ? text.keys : text.values));
    (is_keys ? text.key_codecs : text.value_codecs).push_back(std::move(bound));
  }
  return {};
}

void LayerKv::fit_text() {
  const int64_t d = shape_.d_head, heads = shape_.n_kv_heads;
  auto text = std::make_shared<KvTextTables>();
  Matrix<float> rows(kKeyBlock, heads * d);
  AlignedVector<float> page(static_cast<size_t>(kKeyBlock * d));
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    const bool is_keys = side == KvSide::kKeys;
    const KvCodec& codec = is_keys ? *recipe_->keys : *recipe_->values;
    if (codec.tables() != KvTables::kOfText) continue;
    for (int64_t head = 0; head < heads; ++head) {
      page_floats(side, head, 0, page.data());
      for (int64_t i = 0; i < kKeyBlock * d; ++i) {
        const int64_t p = is_keys ? i % kKeyBlock : i / d, c = is_keys ? i / kKeyBlock : i % d;
        rows(p, head * d + c) = page[static_cast<size_t>(i)];
      }
    }
    auto fitted = codec.fit({side, heads, d, rows.view(), {}});
    QUERN_CHECK(fitted);
    (is_keys ? text->keys : text->values) = *std::move(fitted);
    QUERN_CHECK(bind_text(side, *text));
  }
  text_ = std::move(text);
}

// A page as its codec sees it.
void LayerKv::page_floats(KvSide side, int64_t head, int64_t block, float* x) {
  const int64_t n = kKeyBlock * shape_.d_head;
  const Exact exact(*this, head);
  const KvOperand stored = side == KvSide::kKeys ? exact.keys(block, {}) : exact.values(block, {});
  const float* floats = floats_of(stored, n, x);
  if (floats != x) std::copy_n(floats, n, x);
  KvSinks* sinks = block == 0 ? sinks_.get() : nullptr;
  if (sinks != nullptr) sinks->keep(side, head, x);
  if (side == KvSide::kKeys && shape_.rope != nullptr)
    shape_.rope->apply(block, RopeWay::kTurnBack, x);
  if (sinks != nullptr) sinks->stand_in(side, x);
}

void LayerKv::seal(int64_t head, int64_t block, const KvAttention& seen,
                   std::span<std::vector<std::byte>> varying) {
  thread_local AlignedVector<float> scratch;
  scratch.resize(static_cast<size_t>(kKeyBlock * shape_.d_head));
  const int64_t d = shape_.d_head;
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    page_floats(side, head, block, scratch.data());
    if (is_varying(side)) {
      varying[static_cast<size_t>(varying_part(side, head))] =
          codec(side, head).encode_seen(side, d, scratch.data(), seen);
    } else {
      std::byte* codes = pages_.own(block, head) + (side == KvSide::kKeys ? 0 : key_page_);
      codec(side, head).encode(side, d, scratch.data(), codes);
    }
  }
}

void LayerKv::make_own() {
  for (KvMergedHead& head : heads_) head.slots.make_own();
  if (recipe_->merge != nullptr) return exact_blocks_.make_own(0);
  exact_blocks_.make_own(recipe_->is_coded() ? 0 : ceil_div(capacity_, kKeyBlock));
  pages_.make_own(0);
  varying_.make_own();
}

size_t LayerKv::n_new_bytes(std::set<const void*>& seen) const {
  size_t total = exact_blocks_.n_new_bytes(seen) + pages_.n_new_bytes(seen) +
                 varying_.n_new_bytes(seen) + slots_.n_bytes() + absorbed_.n_bytes();
  if (sinks_ != nullptr && seen.insert(sinks_.get()).second) total += 2 * sinks_->halves().size();
  if (text_ != nullptr && seen.insert(text_.get()).second) total += text_->n_bytes();
  for (const KvMergedHead& head : heads_) total += head.n_new_bytes(seen);
  return total;
}

int64_t LayerKv::bytes_read(int64_t first, int64_t last) const {
  if (merge() != nullptr) {
    int64_t total = 0;
    for (const KvMergedHead& head : heads_) {
      total += head.slots.bytes_read(head.slot_from(first), head.slot_from(last));
    }
    return total;
  }
  last = slot_of(last);
  first = std::clamp<int64_t>(slot_of(first), 0, last);
  const int64_t coded = std::clamp(coded_slots(last - 1), first, last);
  const int64_t exact_row = 2 * shape_.d_head * dtype_bits(exact_) / 8;
  return (coded > first ? bytes_of_pages(first / kKeyBlock, ceil_div(coded, kKeyBlock)) : 0) +
         shape_.n_kv_heads * (last - coded) * exact_row;
}

bool LayerKv::can_truncate(int64_t length) const {
  if (length == 0) return true;
  if (merge() != nullptr) {
    const std::vector<int32_t>& positions = heads_[0].positions;
    return !positions.empty() && length - 1 == positions.back();
  }
  if (length == n_slots() + slots_.n_dropped) return true;
  return policy() == nullptr && !adapts() && recipe_->coded_before(length - 1) >= exact_begin_;
}

void LayerKv::truncate(int64_t length) {
  QUERN_CHECK(can_truncate(length));
  if (merge() != nullptr && length > 0) return;
  if (length == 0) {
    exact_begin_ = 0;
    sinks_ = nullptr;
    text_ = nullptr;
    forget();
  }
  length_ = slot_of(length);
  pages_.resize(n_pages());
  if (adapts()) varying_.truncate(pages_.size());
  exact_blocks_.resize(ceil_div(length_ - exact_begin_, kKeyBlock));
}

KvOperand LayerKv::Codes::keys(int64_t block, const KvScratch& scratch) const {
  constexpr KvSide kSide = KvSide::kKeys;
  const int64_t d = kv_.shape_.d_head;
  KvOperand keys = kv_.codec(kSide, head_)
                       .read(kSide, d, kv_.page(kSide, head_, block),
                             kv_.next_page(kSide, head_, block), scratch);
  if (kv_.shape_.rope != nullptr) {
    const float* x = floats_of(keys, kKeyBlock * d, scratch.floats);
    if (x != scratch.floats) std::copy_n(x, kKeyBlock * d, scratch.floats);
    kv_.shape_.rope->apply(block, RopeWay::kTurn, scratch.floats);
    keys = {.floats = scratch.floats};
  }
  return kv_.with_sinks(KvSide::kKeys, head_, block, keys, scratch);
}

KvOperand LayerKv::Codes::values(int64_t block, const KvScratch& scratch) const {
  constexpr KvSide kSide = KvSide::kValues;
  const KvOperand values = kv_.codec(kSide, head_)
                               .read(kSide, kv_.shape_.d_head, kv_.page(kSide, head_, block),
                                     kv_.next_page(kSide, head_, block), scratch);
  return kv_.with_sinks(kSide, head_, block, values, scratch);
}

StoredBlocks LayerKv::Exact::stored(int64_t block) const {
  const int64_t at = block - kv_.exact_begin_ / kKeyBlock;
  return {kv_.exact_blocks_.at(at, key_part(head_)), kv_.exact_blocks_.at(at, value_part(head_)),
          kv_.exact_, kv_.shape_.d_head};
}

KvOperand LayerKv::Exact::keys(int64_t block, const KvScratch& scratch) const {
  return stored(block).keys(0, scratch);
}

KvOperand LayerKv::Exact::values(int64_t block, const KvScratch& scratch) const {
  return stored(block).values(0, scratch);
}

KvCache::KvCache(const std::vector<KvShape>& layers, int64_t capacity, const KvCacheRecipe& recipe)
    : recipe_(std::make_shared<const KvCacheRecipe>(recipe)), capacity_(capacity) {
  for (size_t i = 0; i < layers.size(); ++i) {
    layers_.emplace_back(layers[i], capacity, recipe.of(i));
  }
}

KvCache KvCache::copy() const {
  KvCache copied = fork();
  for (LayerKv& layer : copied.layers_) layer.make_own();
  return copied;
}

Status KvCache::truncate(int64_t length) {
  for (const LayerKv& layer : layers_) {
    if (!layer.can_truncate(length)) {
      return error("the cache cannot go back to {} of {} tokens: what came before is {}", length,
                   length_, layer.recipe().is_coded() ? "coded" : "dropped or merged");
    }
  }
  for (LayerKv& layer : layers_) layer.truncate(length);
  length_ = length;
  return {};
}

size_t KvCache::n_bytes() const { return kv_bytes({this, 1}); }

const KvCodec& LayerKv::codec(KvSide side, int64_t head) const {
  const auto at = static_cast<size_t>(head);
  if (side == KvSide::kKeys) {
    if (text_ != nullptr && !text_->keys.empty()) return *text_->key_codecs[at];
    return shape_.keys.empty() ? *recipe_->keys : *shape_.keys[at];
  }
  if (text_ != nullptr && !text_->values.empty()) return *text_->value_codecs[at];
  return shape_.values.empty() ? *recipe_->values : *shape_.values[at];
}

LayerKv::Held& LayerKv::Held::operator+=(const Held& other) {
  coded += other.coded;
  coded_bytes += other.coded_bytes;
  all_bytes += other.all_bytes;
  return *this;
}

LayerKv::Held LayerKv::held() const {
  if (merge() != nullptr) {
    Held sum;
    for (const KvMergedHead& head : heads_) sum += head.slots.held();
    return sum;
  }
  const int64_t row = width() * dtype_bits(exact_) / 8;
  const int64_t coded = pages_.size() * kKeyBlock, n_sinks = coded > 0 ? recipe_->sinks : 0;
  const int64_t bytes = bytes_of_pages(0, pages_.size());
  return {coded * width(), bytes, bytes + (length_ - coded + n_sinks) * row};
}

LayerKv::Held KvCache::held() const {
  LayerKv::Held sum;
  for (const LayerKv& layer : layers_) sum += layer.held();
  return sum;
}

double KvCache::coded_bits() const {
  const LayerKv::Held h = held();
  return h.coded > 0 ? 8 * static_cast<double>(h.coded_bytes) / static_cast<double>(h.coded) : 0;
}

double KvCache::held_bits() const {
  int64_t width = 0;
  for (const LayerKv& layer : layers_) width += layer.width();
  const auto all = static_cast<double>(length_ * width);
  return all > 0 ? 8 * static_cast<double>(held().all_bytes) / all : 0;
}

size_t kv_bytes(std::span<const KvCache> caches) {
  std::set<const void*> seen;
  size_t total = 0;
  for (const KvCache& cache : caches) {
    for (const LayerKv& layer : cache.layers_) total += layer.n_new_bytes(seen);
  }
  return total;
}

}  // namespace quern
