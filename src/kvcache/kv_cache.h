// SPDX-License-Identifier: Apache-2.0
// Keys and values of one sequence, one store per layer, as its KvRecipe says: pages of codes, and
// the newest positions as halves or floats. Keys are stored as attention reads them, after RoPE. A
// copy shares all of it until one of the two writes. Under a policy of eviction positions lie in
// slots, without one slot and position are the same. Where heads merge, each has slots of its own
// number.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "base/status.h"
#include "kernels/attention.h"
#include "kernels/hadamard.h"
#include "kvcache/kv_blocks.h"
#include "kvcache/kv_cache_recipe.h"
#include "kvcache/kv_feature_maps.h"
#include "kvcache/kv_layer_state.h"
#include "kvcache/kv_merge.h"
#include "kvcache/kv_rope.h"
#include "kvcache/kv_shape.h"
#include "kvcache/kv_sinks.h"
#include "kvcache/kv_slots.h"
#include "kvcache/kv_varying.h"
#include "tensor/matrix.h"

namespace quern {

struct KvMergedHead;

// What codecs of one layer have from the first page of a text.
struct KvTextTables {
  std::vector<float> keys, values;
  std::vector<std::shared_ptr<const KvCodec>> key_codecs, value_codecs;  // by head; may be empty
  size_t n_bytes() const { return (keys.size() + values.size()) * sizeof(float); }
};

// One layer of one sequence.
class LayerKv {
 public:
  LayerKv(KvShape shape, int64_t capacity, std::shared_ptr<const KvRecipe> recipe);

  // Stores positions from `position` on of every head; rows of k and v are [n_kv_heads * d_head],
  // rotated if the recipe says so. What the queries of these positions read is there until the next
  // call.
  void put(int64_t position, MatrixView<const float> k, MatrixView<const float> v);

  const KvRecipe& recipe() const { return *recipe_; }
  const HadamardPlan* rotation() const { return rotation_.get(); }  // of a head; null: none
  // Shares nothing any more.
  void make_own();
  // Allocated, without what is in `seen`, which gains it.
  size_t n_new_bytes(std::set<const void*>& seen) const;
  // What a query that sees positions [first, last), itself the last of them, reads of all heads.
  int64_t bytes_read(int64_t first, int64_t last) const;

  // Whether positions from `length` on can be dropped: what then is the newest must not be codes,
  // and no score, decision or mean can be taken back.
  bool can_truncate(int64_t length) const;
  void truncate(int64_t length);

  // A query at `position` reads the slots before this one from codes.
  int64_t coded_before(int64_t position) const { return coded_slots(slot_of(position)); }

  // Eviction (kv_eviction.cc); the caller knows when decisions are due.
  const KvPolicy* policy() const { return recipe_->policy.get(); }  // null: everything stays
  int64_t n_slots() const { return length_; }
  int64_t slot_of(int64_t position) const { return position - slots_.n_dropped; }
  const KvSlots& slots() const { return slots_; }
  KvSlots& slots() { return slots_; }
  // What was dropped, under a policy that absorbs it: its sums, and the maps that read them.
  const KvAbsorbed& absorbed() const { return absorbed_; }
  const KvFeatureMaps* maps() const { return shape_.maps.get(); }
  // Drops what the policy says, if there is more than its budget; whether it did.
  bool evict();
  // A few slots anew; rows [n_kv_heads * d_head].
  void rewrite(KvSide side, int64_t slot, MatrixView<const float> rows);
  // The first slot of a head at or behind a position.
  int64_t first_slot(int64_t head, int64_t position) const;

  // Merging (kv_merged.cc). Slots, codes and blocks are those of `merged()`, a cache for each head,
  // and the caller puts rows there.
  const KvMerge* merge() const { return shape_.merge.get(); }  // null: a slot is a position
  std::span<KvMergedHead> merged();
  std::span<const KvMergedHead> merged() const;

  // Pages that differ in size (kv_adaptive.cc): codes those that are full when a query at
  // `position`, the next, reads them, and narrows the others. `seen` is of every head, its weights
  // of all positions.
  bool adapts() const { return recipe_->n_queries() > 0; }
  void adapt(int64_t position, std::span<const KvAttention> seen);

  // What the cache holds of keys and values: numbers in pages and their bytes; bytes of all, of the
  // newest and of sinks as they are read.
  struct Held {
    int64_t coded = 0, coded_bytes = 0, all_bytes = 0;
    Held& operator+=(const Held& other);
  };
  Held held() const;
  int64_t width() const { return 2 * shape_.key_width(); }  // numbers of a position

  // All that decides what queries from the next position on read, as tensors, and back into an
  // empty layer. `restore` checks shapes and that all numbers are such.
  std::vector<KvStateTensor> state() const;
  Status restore(int64_t n_positions, const KvFindTensor& find);

  // Positions of a head before recipe().coded_before(the newest), and those from there on.
  class Codes final : public KvBlocks {
   public:
    Codes(const LayerKv& kv, int64_t head) : kv_(kv), head_(head) {}
    KvOperand keys(int64_t block, const KvScratch& scratch) const override;
    KvOperand values(int64_t block, const KvScratch& scratch) const override;

   private:
    const LayerKv& kv_;
    int64_t head_;
  };
  class Exact final : public KvBlocks {
   public:
    Exact(const LayerKv& kv, int64_t head) : kv_(kv), head_(head) {}
    KvOperand keys(int64_t block, const KvScratch& scratch) const override;
    KvOperand values(int64_t block, const KvScratch& scratch) const override;
    bool is_paired() const override { return kv_.exact_ == DType::kBF16; }

   private:
    StoredBlocks stored(int64_t block) const;
    const LayerKv& kv_;
    int64_t head_;
  };

 private:
  bool is_varying(KvSide side) const;  // pages differ in size
  const std::byte* page(KvSide side, int64_t head, int64_t block) const;
  // null: there is none.
  const std::byte* next_page(KvSide side, int64_t head, int64_t block) const {
    return block + 1 < pages_.size() ? page(side, head, block + 1) : nullptr;
  }
  int64_t bytes_of_pages(int64_t first, int64_t last) const;
  const KvCodec& codec(KvSide side, int64_t head) const;
  int64_t row_bytes() const { return shape_.d_head * dtype_bits(exact_) / 8; }
  // Parts of a block of exact_blocks_.
  static int64_t key_part(int64_t head) { return 2 * head; }
  static int64_t value_part(int64_t head) { return 2 * head + 1; }
  static int64_t varying_part(KvSide side, int64_t head) {
    return side == KvSide::kKeys ? key_part(head) : value_part(head);
  }
  // Bytes from the begin of such a part to dimension c of its row `row`.
  int64_t key_place(int64_t row, int64_t c) const {
    if (exact_ == DType::kBF16) return pair_place(kKeyBlock, c, row) * 2;
    return (c * kKeyBlock + row) * dtype_bits(exact_) / 8;
  }
  int64_t value_place(int64_t row, int64_t c) const {
    if (exact_ == DType::kBF16) return pair_place(shape_.d_head, row, c) * 2;
    return (row * shape_.d_head + c) * dtype_bits(exact_) / 8;
  }
  void put_head(int64_t head, int64_t slot, MatrixView<const float> k, MatrixView<const float> v);
  // Between calls, and decisions.
  int64_t n_pages() const {
    return length_ == 0 ? 0 : coded_slots(adapts() ? length_ : length_ - 1) / kKeyBlock;
  }
  int64_t coded_slots(int64_t slot) const {
    return slots_.is_open ? 0 : recipe_->coded_before(slot);
  }
  // The first slot that is still kept as it came when `slot` is the next.
  int64_t exact_needed(int64_t slot) const {
    return std::max<int64_t>(0, coded_slots(slot - 1) - kKept);
  }
  void put_key(int64_t head, int64_t slot, const float* key);
  void put_value(int64_t head, int64_t slot, const float* value);
  bool close_ranks();
  void absorb(int64_t head, std::span<const int32_t> kept);
  void row_floats(KvSide side, int64_t head, int64_t slot, float* x) const;
  void move_row(int64_t head, int64_t from, int64_t to);
  void make_room(int64_t slot, int64_t n);
  void forget();
  Status restore_pages(const KvFindTensor& find);
  Status restore_absorbed(const KvFindTensor& find);
  // Looks at the first page, as codecs see it, for those that have tables of the text.
  void fit_text();
  Status bind_text(KvSide side, KvTextTables& text) const;
  // Codes the pages from `first` on, of all heads; of every head what is seen of all positions.
  void seal_from(int64_t first, std::span<const KvAttention> seen = {});
  void seal(int64_t head, int64_t block, const KvAttention& seen,
            std::span<std::vector<std::byte>> varying);
  bool narrow(int64_t head, int64_t block, const KvAttention& seen,
              std::span<std::vector<std::byte>> varying) const;
  Status restore_varying(const KvFindTensor& find);
  void add_pages(std::vector<KvStateTensor>& tensors) const;
  void page_floats(KvSide side, int64_t head, int64_t block, float* x);
  KvOperand with_sinks(KvSide side, int64_t head, int64_t block, const KvOperand& read,
                       const KvScratch& scratch) const {
    return block == 0 && sinks_ != nullptr ? sinks_->with(side, head, read, scratch) : read;
  }

  // Positions that stay as they came behind those that are read so, for `truncate`.
  static constexpr int64_t kKept = kKeyBlock;

  KvShape shape_;
  std::shared_ptr<const KvRecipe> recipe_;
  std::shared_ptr<const HadamardPlan> rotation_;
  DType exact_;
  int64_t capacity_;
  KvSlots slots_;
  KvAbsorbed absorbed_;
  std::vector<KvMergedHead> heads_;
  // Slots [exact_begin_, length_) as they came, exact_begin_ a multiple of kKeyBlock: of every
  // head, keys turned, and rows of values.
  int64_t exact_begin_ = 0, length_ = 0;
  KvBlockList exact_blocks_;
  // Pages of all blocks before recipe().coded_before(the newest): for every head, the page of keys
  // and that of values, where these have one size; else in varying_.
  int64_t key_page_ = 0, page_bytes_ = 0;
  KvBlockList pages_;
  KvVaryingList varying_;
  std::shared_ptr<const KvTextTables> text_;  // from when page 0 is coded
  std::shared_ptr<KvSinks> sinks_;            // of page 0, from when it is coded; shared with forks
};

// A KV head that merges: its slots in a cache of one head.
struct KvMergedHead {
  KvMergedHead(const KvShape& layer, int64_t capacity,
               const std::shared_ptr<const KvRecipe>& recipe)
      : slots({.n_kv_heads = 1, .d_head = layer.d_head}, capacity, recipe),
        open(layer.merge->window(), layer.d_head) {}

  int64_t slot_from(int64_t position) const {  // the first whose newest token is not before it
    return std::lower_bound(positions.begin(), positions.end(), position) - positions.begin();
  }
  size_t n_new_bytes(std::set<const void*>& seen) const {
    return slots.n_new_bytes(seen) + positions.capacity() * sizeof(int32_t) + open.n_bytes();
  }
  // Stores a token's means behind RoPE [1, d_head]: in the newest slot, or in one that is new.
  void join(int64_t position, MatrixView<const float> k, MatrixView<const float> v);
  void start(int64_t position, MatrixView<const float> k, MatrixView<const float> v);

  // As tensors "heads.H.NAME", and back into one that is empty.
  void add_state(int64_t head, std::vector<KvStateTensor>& tensors) const;
  Status restore(int64_t head, int64_t n_positions, const KvFindTensor& find);
  static std::string state_name(int64_t head, std::string_view name);

  LayerKv slots;
  std::vector<int32_t> positions;  // by slot: of its newest token, ascending
  KvOpenSlot open;                 // the newest
};

inline std::span<KvMergedHead> LayerKv::merged() { return heads_; }
inline std::span<const KvMergedHead> LayerKv::merged() const { return heads_; }

class KvCache {
 public:
  KvCache(const std::vector<KvShape>& layers, int64_t capacity, const KvCacheRecipe& recipe);
  KvCache(KvCache&&) = default;
  KvCache& operator=(KvCache&&) = default;
  // Another cache of the same sequence so far. Both share what they hold until one of them writes:
  // pages for ever, of the newest positions as they came the blocks that are not yet full.
  KvCache fork() const { return *this; }
  // The same that shares nothing: what another sequence of this length takes.
  KvCache copy() const;
  int64_t capacity() const { return capacity_; }
  int64_t length() const { return length_; }
  const KvCacheRecipe& recipe() const { return *recipe_; }
  size_t n_layers() const { return layers_.size(); }
  LayerKv& layer(size_t i) { return layers_[i]; }
  const LayerKv& layer(size_t i) const { return layers_[i]; }
  void advance(int64_t n) { length_ += n; }
  // Drops positions from `length` on. Fails where what is then among the newest is kept as codes
  // only.
  Status truncate(int64_t length);
  size_t n_bytes() const;  // allocated, alone or with others
  // Of a number in a page (0: there is none), and of any of the text: what a policy or a rule of
  // merging keeps over what all positions are.
  double coded_bits() const;
  double held_bits() const;

 private:
  friend size_t kv_bytes(std::span<const KvCache> caches);
  LayerKv::Held held() const;
  KvCache(const KvCache&) = default;
  std::shared_ptr<const KvCacheRecipe> recipe_;
  std::vector<LayerKv> layers_;
  int64_t capacity_, length_ = 0;
};

// Allocated by all of them together: what forks share counts once.
size_t kv_bytes(std::span<const KvCache> caches);

}  // namespace quern
