// SPDX-License-Identifier: Apache-2.0
// Memory that a thread keeps for the next call of a function: large blocks fresh from the system
// are cleared twice, page by page and as zeros.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "tensor/matrix.h"

namespace quern {

// At least n elements of a buffer that outlives the call, which may move. Static, since files of
// different ISAs call it.
template <class T>
static inline T* grown(AlignedVector<T>& buffer, int64_t n) {
  if (static_cast<int64_t>(buffer.size()) < n) buffer.resize(static_cast<size_t>(n));
  return buffer.data();
}

// A dense matrix for the length of a function. Elements start as anything. The thread keeps as many
// blocks as were in use at once.
class ScratchMatrix {
 public:
  ScratchMatrix(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {
    const auto n = static_cast<size_t>(rows * cols);
    std::vector<Block>& blocks = kept();
    // The smallest block that holds it, else the largest, to be replaced.
    size_t best = blocks.size();
    for (size_t i = 0; i < blocks.size(); ++i) {
      const bool is_enough = blocks[i].size() >= n;
      if (best == blocks.size() ||
          (is_enough ? blocks[best].size() < n || blocks[i].size() < blocks[best].size()
                     : blocks[best].size() < n && blocks[i].size() > blocks[best].size())) {
        best = i;
      }
    }
    if (best < blocks.size()) {
      block_ = std::move(blocks[best]);
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(best));
    }
    if (block_.size() < n) block_ = Block(n);
  }
  ~ScratchMatrix() {
    if (!block_.empty()) kept().push_back(std::move(block_));
  }
  ScratchMatrix(const ScratchMatrix&) = delete;
  ScratchMatrix& operator=(const ScratchMatrix&) = delete;

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  float* row(int64_t i) { return block_.data() + i * cols_; }
  MatrixView<float> view() { return {block_.data(), rows_, cols_}; }

 private:
  using Block = AlignedVector<float>;
  static std::vector<Block>& kept() {
    thread_local std::vector<Block> blocks;
    return blocks;
  }
  int64_t rows_, cols_;
  Block block_;
};

}  // namespace quern
