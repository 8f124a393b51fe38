// SPDX-License-Identifier: Apache-2.0
// The seams inside the codebook codec: nearest codeword, clustering, one row of the decoder.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/matrix.h"

namespace quern {

constexpr int kMaxCodebookDim = 4;

// k points of dim coordinates, coordinate by coordinate: [dim, stride] floats on 64-byte lines;
// stride is k rounded up to a multiple of 16.
struct CodebookPoints {
  CodebookPoints(int64_t k, int dim);
  float& at(int64_t c, int t) { return values[static_cast<size_t>(t * stride + c)]; }
  float at(int64_t c, int t) const { return values[static_cast<size_t>(t * stride + c)]; }
  int64_t k, stride;
  int dim;
  AlignedVector<float> values;
};

// The index of the lowest sum over t of weight[t] (x[t] - point[t])^2, terms in order and rounded
// one by one; ties go to the lowest. Finite x and weights.
using CodebookNearest = int64_t (*)(const CodebookPoints&, const float* x, const float* weight);
int64_t codebook_nearest_ref(const CodebookPoints& points, const float* x, const float* weight);
int64_t codebook_nearest_avx512(const CodebookPoints& points, const float* x, const float* weight);
CodebookNearest codebook_nearest();  // the fastest here

// Weighted k-means of vectors [n, dim]; weight: [n, dim] importance of each coordinate.
struct CodebookSample {
  int dim;
  std::vector<float> x, weight;
  int64_t size() const { return static_cast<int64_t>(x.size()) / dim; }
};
// GPTVQ's seeds: k points equally spaced in the order of Mahalanobis distance from the mean (of
// value, for one dimension).
CodebookPoints codebook_seeds(const CodebookSample& sample, int64_t k);
// At most `iterations` of expectation and maximisation; empty clusters move to the vectors that are
// served worst. Never raises the loss, which is returned for the points given back.
double codebook_cluster(const CodebookSample& sample, int iterations, CodebookPoints& points);

// One stretch of a row whose columns share a table: dst[i] = scale * table[code(i / dim), i % dim].
struct CodebookRow {
  const uint8_t* codes;  // little-endian fields of `width` bits, the first at bit 0
  int64_t codes_bytes;   // that may be read from `codes` on
  const int8_t* table;   // [2^width, dim]; nothing behind it is read
  float scale;
  int dim;
  int width;  // 1 to 8, 10 or 12
  int64_t n;
};
void codebook_decode_ref(const CodebookRow& row, float* dst);
void codebook_decode_avx512(const CodebookRow& row, float* dst);

// Columns of one group in the integer form (kernels/panels.h), of at most 16 rows with a table
// each. A level is a byte of the table + 128.
struct CodebookPanel {
  const uint8_t* codes;      // as of CodebookRow, of the first row
  int64_t stride;            // bytes from a row to the next
  int64_t codes_bytes;       // that may be read of a row
  const int8_t* tables[16];  // [2^width, dim], 256 bytes at most
  int dim, width;
  int64_t n_rows, n_cols;
};
void codebook_panel_ref(const CodebookPanel& rows, uint8_t* levels);
void codebook_panel_avx512(const CodebookPanel& rows, uint8_t* levels);

}  // namespace quern
