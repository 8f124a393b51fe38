// SPDX-License-Identifier: Apache-2.0
// Keys and values of one sequence, one store per layer, as a KvRecipe says: pages of codes, and the
// newest positions as halves or floats. Keys are stored as attention reads them, after RoPE.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "kernels/attention.h"
#include "kernels/hadamard.h"
#include "kvcache/kv_recipe.h"
#include "tensor/matrix.h"

namespace quern {

struct KvShape {
  int64_t n_kv_heads = 0;
  int64_t d_head = 0;
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
  size_t n_bytes() const { return keys_.capacity() + values_.capacity() + pages_.capacity(); }
  // What a query that sees positions [first, last), itself the last of them, reads of all heads.
  int64_t bytes_read(int64_t first, int64_t last) const;

  // Whether positions from `length` on can be dropped: what then is the newest must not be codes.
  bool can_truncate(int64_t length) const {
    return recipe_->coded_before(length - 1) >= exact_begin_ || length == 0;
  }
  void truncate(int64_t length);

  // Positions of a head before recipe().coded_before(the newest), and those from there on.
  class Codes final : public KvBlocks {
   public:
    Codes(const LayerKv& kv, int64_t head) : kv_(kv), head_(head) {}
    const float* keys(int64_t block, float* scratch) const override;
    const float* values(int64_t block, float* scratch) const override;

   private:
    const LayerKv& kv_;
    int64_t head_;
  };
  class Exact final : public KvBlocks {
   public:
    Exact(const LayerKv& kv, int64_t head);
    const float* keys(int64_t block, float* scratch) const override;
    const float* values(int64_t block, float* scratch) const override;

   private:
    StoredBlocks stored_;
    int64_t first_block_;
  };

 private:
  std::byte* page(int64_t head, int64_t block) {
    return pages_.data() + (block * shape_.n_kv_heads + head) * page_bytes_;
  }
  const std::byte* page(int64_t head, int64_t block) const {
    return const_cast<LayerKv*>(this)->page(head, block);
  }
  int64_t head_bytes() const { return exact_capacity_ * shape_.d_head * dtype_bits(exact_) / 8; }
  void put_head(int64_t head, int64_t position, MatrixView<const float> k,
                MatrixView<const float> v);
  void make_room(int64_t position, int64_t n);
  void seal(int64_t head, int64_t block);

  KvShape shape_;
  std::shared_ptr<const KvRecipe> recipe_;
  std::shared_ptr<const HadamardPlan> rotation_;
  DType exact_;
  int64_t capacity_;
  // Positions [exact_begin_, length_) as they came, room for exact_capacity_; both multiples of
  // kKeyBlock. By head: turned blocks of keys, rows of values.
  int64_t exact_begin_ = 0, exact_capacity_ = 0, length_ = 0;
  AlignedVector<std::byte> keys_, values_;
  // Pages of blocks [0, n_sealed_): of every block, for every head, the page of keys and that of
  // values.
  int64_t n_sealed_ = 0, key_page_ = 0, page_bytes_ = 0;
  AlignedVector<std::byte> pages_;
};

class KvCache {
 public:
  KvCache(const std::vector<KvShape>& layers, int64_t capacity, const KvRecipe& recipe);
  int64_t capacity() const { return capacity_; }
  int64_t length() const { return length_; }
  LayerKv& layer(size_t i) { return layers_[i]; }
  void advance(int64_t n) { length_ += n; }
  // Drops positions from `length` on. Fails where what is then among the newest is kept as codes
  // only.
  Status truncate(int64_t length);
  size_t n_bytes() const;  // allocated

 private:
  std::vector<LayerKv> layers_;
  int64_t capacity_, length_ = 0;
};

}  // namespace quern
