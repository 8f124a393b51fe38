// SPDX-License-Identifier: Apache-2.0
// Owner of a dense row-major matrix; rows start on 64-byte lines when cols * sizeof(T) is a
// multiple of 64. Elements start as zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensor/view.h"

namespace quern {

// Memory on a cache line; from the size of a huge page on it lies on such pages, where the system
// has them: what is read in order is fetched ahead to the end of a page only.
inline constexpr size_t kHugePage = size_t{2} << 20;
void* allocate_lines(size_t n_bytes);
void free_lines(void* memory, size_t n_bytes);

template <class T>
struct CacheLineAllocator {
  using value_type = T;
  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}  // NOLINT: rebinding must convert
  T* allocate(size_t n) { return static_cast<T*>(allocate_lines(n * sizeof(T))); }
  void deallocate(T* pointer, size_t n) { free_lines(pointer, n * sizeof(T)); }
  template <class U>
  bool operator==(const CacheLineAllocator<U>&) const {
    return true;
  }
};

template <class T>
using AlignedVector = std::vector<T, CacheLineAllocator<T>>;

template <class T>
class Matrix {
 public:
  Matrix() = default;
  Matrix(int64_t rows, int64_t cols)
      : rows_(rows), cols_(cols), data_(static_cast<size_t>(rows * cols)) {}

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  bool empty() const { return data_.empty(); }
  T* data() { return data_.data(); }
  const T* data() const { return data_.data(); }
  T* row(int64_t i) { return data_.data() + i * cols_; }
  const T* row(int64_t i) const { return data_.data() + i * cols_; }
  T& operator()(int64_t i, int64_t j) { return data_[static_cast<size_t>(i * cols_ + j)]; }
  T operator()(int64_t i, int64_t j) const { return data_[static_cast<size_t>(i * cols_ + j)]; }
  MatrixView<T> view() { return {data_.data(), rows_, cols_}; }
  MatrixView<const T> view() const { return {data_.data(), rows_, cols_}; }
  bool operator==(const Matrix&) const = default;

 private:
  int64_t rows_ = 0, cols_ = 0;
  AlignedVector<T> data_;
};

}  // namespace quern
