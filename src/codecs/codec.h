// SPDX-License-Identifier: Apache-2.0
// A codec turns blocks of numbers into codes and back. It knows matrices of floats, never models,
// files, threads or Hessians.
//
// A coded matrix is a set of planes: plain byte arrays whose names, types and shapes follow from
// the codec's parameters and the matrix's size alone, so that a file can be checked before it is
// used and every byte is counted. Strips of block_rows() rows are independent: a solver may code
// them from many threads.
//
// A matrix is coded in three strides: fit_matrix once, then for each group of columns fit, then
// encode; the last two for each strip of rows. Codecs that decide late (see ColumnCoder) are
// driven column by column instead of by encode.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "kernels/panels.h"
#include "spec/params.h"
#include "tensor/dtype.h"
#include "tensor/matrix.h"
#include "tensor/shape.h"

namespace quern {

struct PlaneSpec {
  std::string name;  // suffix of the tensor's name: "codes", "scales"
  DType dtype = DType::kU8;
  Shape shape;
  size_t n_bytes() const;
  bool operator==(const PlaneSpec&) const = default;
};

// Pointers to the planes of one matrix, in the order of Codec::planes().
struct CodesView {
  int64_t n_out = 0, n_in = 0;
  std::vector<const std::byte*> planes;
};
struct MutableCodes {
  int64_t n_out = 0, n_in = 0;
  std::vector<std::byte*> planes;
  operator CodesView() const {  // NOLINT: a view of const is always safe
    return {n_out, n_in, {planes.begin(), planes.end()}};
  }
};

// What a codec promises on a unit Gaussian source, and who says so.
struct Claim {
  double bits = 0;  // code bits per weight, side info excluded
  double mse = 0;   // per weight; 0: none claimed
  std::string_view source;
};

// What fit_matrix may know of a matrix.
struct MatrixSource {
  MatrixView<const float> w;
  std::span<const float> weight;  // importance of each column; empty: all alike
  // Error feedback codes w plus errors of earlier columns; these add `feedback` times the mean
  // squared error to the variance of what is coded. 0: no feedback.
  float feedback = 0;
  std::span<const float> row_weight = {};  // importance of each row; empty: all alike
};

// Codes the columns of one strip from left to right and decides late: what a column became is known
// once the next one is in, so that a search may look ahead.
class ColumnCoder {
 public:
  virtual ~ColumnCoder() = default;
  struct Column {
    const float* w;        // [rows] the column as it is
    const float* target;   // [rows] what to code if the column before had no error
    float coupling = 0;    // coupling * (w - w_hat) of the column before is added to target
    float importance = 1;  // of an error of this column beside one of another
  };
  // Takes the next column; writes w - w_hat of the one before (if any) to error[rows].
  virtual void push(const Column& column, float* error) = 0;
  // Ends the strip; writes w - w_hat of the last column.
  virtual void finish(float* error) = 0;
};

// A part of the side info in which, all else fixed, W_hat is linear: a codebook, the scales of
// rows. Solvers refit it to given codes. It reads the planes when it is made.
class LinearPart {
 public:
  virtual ~LinearPart() = default;
  virtual std::vector<float> values() const = 0;  // as stored
  // dst[n_rows, n_in]: rows of W_hat for these values in place of the stored, not rounded.
  virtual void decode(std::span<const float> values, int64_t row, int64_t n_rows,
                      float* dst) const = 0;
  // sums[p] += sum over i, j of slope_p(i, j)^power g(i, j), where slope_p is how W_hat changes
  // with value p; g [n_out, n_in], power 1 or 2.
  virtual void gather(MatrixView<const float> g, int power, std::span<double> sums) const = 0;
  virtual void store(std::span<const float> values) = 0;  // rounds
};

// What a matrix's integer form (see kernels/panels.h) is best decoded in.
struct PanelTile {
  int64_t rows = kPanelRows;    // a multiple of it
  int64_t cols = 0;             // a multiple of `group`; 0: whole rows
  int64_t group = kPanelGroup;  // columns that share a scale
};

// What reading a coded matrix takes.
class Decoder {
 public:
  virtual ~Decoder() = default;
  // Canonical text: "int(4, group=64)".
  virtual std::string spec() const = 0;
  // The planes of a matrix, or why this size cannot be coded.
  virtual Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const = 0;
  // dst[n_rows, n_in]: the values of rows [row, row + n_rows). Exact: the same bits from every
  // implementation. Any byte pattern in the planes is safe.
  virtual void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const = 0;
  // Decoding any of these rows, from a multiple of this on, costs as much as decoding all.
  virtual int64_t decode_unit() const { return 1; }

  virtual PanelTile panel_tile(int64_t /*n_in*/) const { return {}; }
  // The integer form of rows [row, row + n_rows) and columns [col, col + n_cols), cut at multiples
  // of the tile's rows and columns or at the matrix's end; what lies past the end is left open.
  // Every value is within half a level of what decode gives, the same bits from every
  // implementation; any byte pattern in the planes is safe. Unless overridden, what decode gives is
  // rounded; codecs whose values are small integers times a scale have them exactly, and faster.
  virtual void decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                             int64_t n_cols, const MutablePanels& out) const;
  // y[n_rows]: those rows, cut at multiples of the tile's, against one row of activations, to the
  // bits of panel_dot over what decode_panels writes. False, and nothing done, where a codec has no
  // way that spares the levels their way through memory.
  virtual bool dot_panels(const CodesView& /*codes*/, int64_t /*row*/, int64_t /*n_rows*/,
                          const Int8Rows& /*x*/, float* /*y*/) const {
    return false;
  }
};

struct RuntimeForm;

// What the runtime asks of a matrix for every token.
enum class Reading : uint8_t { kValues, kPanels };

class Codec : public Decoder {
 public:
  virtual Claim claim() const = 0;

  // Columns coded together, and columns that share side info (a multiple of block_cols, at most
  // n_in). The last group of a row may be shorter, and its last block, where planes() takes n_in.
  virtual int64_t block_cols() const = 0;
  // Rows coded together: fit and encode get strips of so many, the last strip what remains.
  virtual int64_t block_rows() const { return 1; }
  virtual int64_t group_cols(int64_t n_in) const = 0;

  // Chooses what the whole matrix shares: a scale, a codebook. Called once, before all else.
  virtual void fit_matrix(const MatrixSource&, const MutableCodes&) const {}
  // Whether fit and fit_matrix look at the importance of columns. Solvers that know it (the pivots
  // of the Hessian, in the order of coding) pass it on to such codecs only.
  virtual bool weighs_columns() const { return false; }
  // Chooses the side info of rows [row, row + w.rows) and columns [col, col + w.cols), one group.
  // `weight` holds one importance per column, or nothing.
  virtual void fit(MatrixView<const float> w, std::span<const float> weight, int64_t row,
                   int64_t col, const MutableCodes& codes) const = 0;
  // Codes the columns [col, col + w.cols), whole blocks, of rows [row, row + w.rows), under the
  // side info chosen before, and writes what they decode to.
  virtual void encode(MatrixView<const float> w, int64_t row, int64_t col,
                      const MutableCodes& codes, MatrixView<float> w_hat) const = 0;
  // Rows that encode and encode_block should get at once, where there are as many: what a call
  // prepares serves them all.
  virtual int64_t encode_rows() const { return 32; }
  // As encode, for one block and nearest in a metric: (w - w_hat) metric (w - w_hat)^T is to be
  // small for each row. `metric` [w.cols, w.cols] is symmetric and positive. Codecs that know no
  // better take the plain distance.
  virtual void encode_block(MatrixView<const float> w, MatrixView<const float> /*metric*/,
                            int64_t row, int64_t col, const MutableCodes& codes,
                            MatrixView<float> w_hat) const {
    encode(w, row, col, codes, w_hat);
  }
  // The values that a weight of this row and column may take under the side info chosen before, in
  // any order; encode of one of them returns it. Only of codecs with lists_levels().
  virtual bool lists_levels() const { return false; }
  virtual void levels(const CodesView& /*codes*/, int64_t /*row*/, int64_t /*col*/,
                      std::vector<float>& /*values*/) const {}
  // Copies what encode writes for rows [row, row + n_rows), whole strips, between planes of these
  // specs: unless overridden, the slices of planes that have a row or a strip for first dimension.
  virtual void copy_rows(std::span<const PlaneSpec> specs, const MutableCodes& from, int64_t row,
                         int64_t n_rows, const MutableCodes& to) const;
  // Parts of the side info that may be refitted, and number `i` of them. `codes` must outlive it.
  virtual int linear_parts() const { return 0; }
  virtual std::unique_ptr<LinearPart> linear_part(int /*i*/, const MutableCodes& /*codes*/) const {
    return nullptr;
  }
  // Whether columns are coded through column_coder, where a solver feeds errors back.
  virtual bool decides_late() const { return false; }
  // If so, a coder of the strip of `n_rows` rows from `row` on, to be pushed all n_in columns in
  // order; else null. `codes` must outlive it.
  virtual std::unique_ptr<ColumnCoder> column_coder(int64_t /*row*/, int64_t /*n_rows*/,
                                                    const MutableCodes& /*codes*/) const {
    return nullptr;
  }
  // The matrix as the runtime is to read it, where reading these codes is too slow for every
  // token; null: as it is.
  virtual std::shared_ptr<const RuntimeForm> runtime_form(const CodesView& /*codes*/,
                                                          Reading /*reading*/) const {
    return nullptr;
  }
};

struct CodecInfo {
  uint32_t id;  // never reused
  std::string_view name;
  spec::ParamSpecs params;
  std::string_view summary;
  Result<std::unique_ptr<Codec>> (*make)(const spec::Params& params);
  std::span<const std::string_view> examples;  // specs that tests and benches walk
};

std::span<const CodecInfo> codecs();  // the rows of list.inc
Result<std::unique_ptr<Codec>> make_codec(const spec::Call& call);
Result<std::unique_ptr<Codec>> make_codec(std::string_view text);

// Owner of one coded matrix.
class CodedMatrix {
 public:
  static Result<CodedMatrix> create(const Decoder& codec, int64_t n_out, int64_t n_in);
  int64_t n_out() const { return n_out_; }
  int64_t n_in() const { return n_in_; }
  const std::vector<PlaneSpec>& specs() const { return specs_; }
  std::span<const std::byte> plane(size_t i) const { return planes_[i]; }
  CodesView view() const;
  MutableCodes mutable_view();
  size_t n_bytes() const;

 private:
  int64_t n_out_ = 0, n_in_ = 0;
  std::vector<PlaneSpec> specs_;
  std::vector<AlignedVector<std::byte>> planes_;
};

// A coded matrix in a form that is read faster and decodes to the same bits. It lives in memory
// only; no file holds it.
struct RuntimeForm {
  std::unique_ptr<const Decoder> decoder;
  CodedMatrix codes;
};

}  // namespace quern
