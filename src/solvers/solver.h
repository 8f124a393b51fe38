// SPDX-License-Identifier: Apache-2.0
// A solver chooses the codes of one matrix to make tr(E H E^T) small, E = W - W_hat. It knows
// codecs by their interface only; one that lacks what the solver needs is declined with a reason.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "codecs/codec.h"
#include "spec/params.h"
#include "tensor/matrix.h"

namespace quern {

struct SolveInput {
  MatrixView<const float> w;         // [n_out, n_in]
  MatrixView<const double> hessian;  // H = X^T X / N [n_in, n_in]; empty: identity
  // Weighs the errors of outputs against each other, H_O [n_out, n_out]; empty: identity. With it
  // the solvers with feedback lower tr(H_O E H E^T) (YAQA, arXiv 2505.22988), at the price of two
  // more matrices of the size of w and of strips of rows that wait for each other.
  MatrixView<const double> output_hessian = {};
  // Mean squares of the gradients of the model's loss along each column and each row of w; empty
  // unless the solver needs_gradients().
  std::span<const float> column_gradients = {}, row_gradients = {};
};

// What happened, for the stage's report. Numerical trouble is counted here, never silent.
struct SolveReport {
  double loss = 0;         // tr(E H E^T)
  double energy = 0;       // tr(W H W^T)
  double damping = 0;      // lambda / mean(diag H), as used
  int damping_raises = 0;  // times the factorisation failed and damping grew
  std::string fallback;    // what was done instead, and why; empty: nothing
  double relative() const { return energy > 0 ? loss / energy : 0; }
};

class Solver {
 public:
  virtual ~Solver() = default;
  virtual std::string spec() const = 0;
  virtual const Codec& codec() const = 0;
  virtual bool needs_hessian() const = 0;
  virtual bool needs_gradients() const { return false; }
  // How much of the inputs' drift behind coded layers the targets make up for: 0 none, 1 all.
  virtual double drift() const { return 0; }
  // Bytes of scratch beyond input and output for one matrix.
  virtual size_t scratch_bytes(int64_t n_out, int64_t n_in) const = 0;
  virtual Result<SolveReport> solve(const SolveInput& input, CodedMatrix& out) const = 0;
};

struct SolverInfo {
  std::string_view name;
  spec::ParamSpecs params;  // the first is the codec, or a solver that has one
  std::string_view summary;
  Result<std::unique_ptr<Solver>> (*make)(const spec::Params& params);
};

std::span<const SolverInfo> solvers();  // the rows of list.inc
const SolverInfo* find_solver(std::string_view name);
Result<std::unique_ptr<Solver>> make_solver(const spec::Call& call);

// Rows that a solver hands to one thread: whole strips of the codec, as many as it likes to get.
int64_t rows_per_piece(const Codec& codec);

// tr(A H A^T); H empty: the squared Frobenius norm. Fixed order of summation, parallel.
double quadratic_form(MatrixView<const float> a, MatrixView<const double> h);

// tr(E H E^T) of a coded matrix.
double coded_loss(const SolveInput& input, const Codec& codec, const CodedMatrix& codes);
// Takes back what `step` does to the codes unless it lowers their loss, which is kept up to date.
void keep_if_better(const SolveInput& input, const Codec& codec, CodedMatrix& codes, double& loss,
                    const std::function<void()>& step);

}  // namespace quern
