// SPDX-License-Identifier: Apache-2.0
// The seams inside the additive codec: books of points, the search for codes, the fit, one row of
// the decoder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "codecs/codec.h"
#include "tensor/matrix.h"

namespace quern {

constexpr int kMaxAdditiveDim = 32;
constexpr int kMaxAdditiveBooks = 8;
constexpr int kMaxAdditiveBeam = 64;
constexpr int64_t kAdditiveCell = 128;  // points of a book that are searched together

// `books` books of k points of dim coordinates each; a vector is coded as a sum of one point of
// each.
struct AdditiveBooks {
  AdditiveBooks(int books, int64_t k, int dim);
  float* point(int book, int64_t c) { return values.data() + (book * k + c) * dim; }
  const float* point(int book, int64_t c) const { return values.data() + (book * k + c) * dim; }
  int books;
  int64_t k;
  int dim;
  AlignedVector<float> values;  // [books, k, dim]
};

// Books laid out for searching, coordinate by coordinate, in cells of consecutive points: 128 or,
// of smaller books, all.
struct AdditiveCells {
  explicit AdditiveCells(const AdditiveBooks& books);
  int64_t cell, cells;    // points in a cell, cells in a book
  Matrix<float> points;   // [books * cells, dim * cell] a row per cell: [dim, cell]
  Matrix<float> centers;  // [books * dim, cells] means of the points of each cell
};

// Searches for the codes of vectors in one metric G: least (x - sum) G (x - sum)^T.
class AdditiveSearch {
 public:
  // `metric` [width, width], symmetric, at most dim wide: coordinates past it do not count.
  // `books` and `cells` must outlive the search. `beam` partial sums are kept after each book.
  AdditiveSearch(const AdditiveBooks& books, const AdditiveCells& cells,
                 MatrixView<const float> metric, int beam, int64_t probes = kProbes);

  static constexpr int64_t kProbes = 32;
  // Codes [n, books] of finite vectors x [n, dim]; of one book the nearest point, ties to the
  // lowest: exact for up to 4096 points, else the nearest of those in the 32 cells or more whose
  // centers are nearest. cost [n]: what is left, at least 0. Codes are those that are passed in
  // where these are no worse (`keep`).
  enum class Start : uint8_t { kFresh, kKeep };
  void code(const float* x, int64_t n, Start start, uint16_t* codes, float* cost) const;

 private:
  struct Sum;
  class Beam;
  void set_offsets(const float* points, int64_t n, float* offsets) const;
  struct Lookers {
    std::vector<uint16_t> sums;  // cell after cell
    std::vector<int64_t> first;  // [cells + 1] of a cell, in `sums`
  };
  Lookers choose_cells(int book, const Matrix<float>& slopes) const;
  template <class Visit>
  void visit_cells(int book, const Matrix<float>& slopes, const Visit& visit) const;
  void offer_best(int book, const Matrix<float>& slopes, const std::vector<float>& base,
                  const std::vector<Sum>& sums, std::vector<Beam>& beams) const;
  void extend(int book, int64_t keep, int64_t n_vectors, std::vector<Sum>& sums) const;
  void slope_of(const float* x, float* slope) const;  // x G
  float form(const float* x) const;                   // x G x^T
  float cost_of(const float* x, const uint16_t* codes) const;

  const AdditiveBooks& books_;
  const AdditiveCells& cells_;
  Matrix<float> metric_;          // [dim, dim], zeros past the width
  Matrix<float> offsets_;         // [books, k] -point G point^T / 2
  Matrix<float> center_offsets_;  // [books, cells]
  int beam_;
  int64_t probes_;
};

// Points to be scored for n slopes: score = offset + slope . point, coordinates in order by fused
// multiply-add.
struct AdditiveScoring {
  const float* slopes;  // [n, dim]
  int64_t n;            // at most 16
  int dim;
  const float* points;   // [dim, n_points]
  const float* offsets;  // [n_points]
  int64_t n_points;
};
// best[n] becomes the highest score where that is higher, and place[n] its first place. The second
// is for multiples of 64 points.
void additive_best_ref(const AdditiveScoring& scoring, float* best, int32_t* place);
void additive_best_avx512(const AdditiveScoring& scoring, float* best, int32_t* place);
// The places, in [n], of the scores that are no lower than `least`; returns how many.
int64_t additive_places_avx512(float least, const float* scores, int64_t n, uint16_t* places);

// Vectors to fit books to: x [rows, blocks * dim]; weight[blocks * dim] of each column, 0 where
// there is none.
struct AdditiveSample {
  Matrix<float> x;
  std::vector<float> weight;
};
struct AdditiveFit {
  int beam;
  int iterations;  // of k-means for each book, and of coding and means for all together, at most
};
// Residual k-means, then all books in turn: vectors are coded anew by the beam search and every
// book becomes the means of what the others leave. No step raises the weighted loss. Returns the
// weighted mean squared error.
double additive_fit(const AdditiveSample& sample, const AdditiveFit& options, AdditiveBooks& books);

// A coded matrix unpacked, and the two parts in which it is linear: its books, its scales. `store`
// rounds and keeps new ones.
struct AdditiveCoded {
  int64_t n_in;
  AdditiveBooks books;
  std::vector<float> scales;    // [n_out]
  std::vector<uint16_t> codes;  // [n_out, blocks, books]
  int64_t n_out() const { return static_cast<int64_t>(scales.size()); }
  uint16_t code(int64_t i, int64_t block, int book) const {
    const int64_t blocks = (n_in + books.dim - 1) / books.dim;
    return codes[static_cast<size_t>((i * blocks + block) * books.books + book)];
  }
};
std::unique_ptr<LinearPart> additive_books_part(AdditiveCoded coded,
                                                std::function<void(const AdditiveBooks&)> store);
std::unique_ptr<LinearPart> additive_scales_part(const AdditiveCoded& coded,
                                                 std::function<void(std::span<const float>)> store);

// Blocks of one row: dst[j * dim + t] = scale * (point(0, code) + point(1, code) + ...)[t], added
// in this order, each operation rounded. A point of bytes is float(byte) * unit of its book.
struct AdditiveRow {
  const std::byte* points;  // [books, k, dim] halves, or signed bytes; nothing behind is read
  const float* units;       // [books] of bytes; null: halves
  int books;
  int64_t k;
  int dim;  // a multiple of 8
  float scale;
  const uint16_t* codes;  // [ceil(n / dim), books], below k
  int64_t n;              // weights
};
void additive_decode_ref(const AdditiveRow& row, float* dst);
void additive_decode_avx512(const AdditiveRow& row, float* dst);

}  // namespace quern
