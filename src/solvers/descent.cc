// SPDX-License-Identifier: Apache-2.0
#include "solvers/descent.h"

#include <algorithm>
#include <numeric>

#include "base/parallel.h"
#include "kernels/kernels.h"
#include "linalg/cholesky.h"

namespace quern {
namespace {

// The inverse of H [g, g], symmetric positive definite; zeros where there is none.
Matrix<float> inverse(Matrix<double> h) {
  const int64_t g = h.rows();
  Matrix<float> result(g, g);
  if (!reverse_cholesky(h.view())) return result;
  std::vector<double> x(static_cast<size_t>(g));
  for (int64_t c = 0; c < g; ++c) {
    x.assign(static_cast<size_t>(g), 0);
    for (int64_t i = c; i >= 0; --i) {  // M y = e_c
      double sum = i == c ? 1 : 0;
      for (int64_t k = i + 1; k <= c; ++k) sum -= h(i, k) * x[static_cast<size_t>(k)];
      x[static_cast<size_t>(i)] = sum;
    }
    for (int64_t i = 0; i < g; ++i) {  // M^T x = D^-1 y
      double sum = x[static_cast<size_t>(i)] / h(i, i);
      for (int64_t k = 0; k < i; ++k) sum -= h(k, i) * x[static_cast<size_t>(k)];
      x[static_cast<size_t>(i)] = sum;
      result(i, c) = static_cast<float>(sum);
    }
  }
  return result;
}

}  // namespace

// Codes that are equal to the tile's where no block is being coded.
struct Descent::Trial {
  const std::vector<PlaneSpec>& specs;
  MutableCodes codes;
};

Descent::Descent(MatrixView<const double> hessian, const Feedback& feedback)
    : h_(hessian.rows, hessian.rows) {
  const auto at = [&](int64_t i, int64_t j) {
    return hessian(feedback.order[static_cast<size_t>(i)], feedback.order[static_cast<size_t>(j)]);
  };
  for (int64_t i = 0; i < h_.rows(); ++i) {
    for (int64_t j = 0; j < h_.cols(); ++j) h_(i, j) = static_cast<float>(at(i, j));
  }
  for (int64_t b = 0, e = 0; b < h_.rows(); b = e) {
    e = feedback.block_end(b);
    Matrix<double> block(e - b, e - b);
    Matrix<float> metric(e - b, e - b);
    for (int64_t i = b; i < e; ++i) {
      for (int64_t j = b; j < e; ++j) {
        block(i - b, j - b) = at(i, j) + (i == j ? feedback.lambda : 0);
        metric(i - b, j - b) = static_cast<float>(block(i - b, j - b));
      }
    }
    metrics_.push_back(std::move(metric));
    inverses_.push_back(inverse(std::move(block)));
  }
}

size_t Descent::scratch_bytes(int64_t n_in, int64_t block) {
  return static_cast<size_t>(n_in * (n_in + 2 * block)) * sizeof(float);
}

void Descent::run(const FeedbackTile& tile, int64_t sweeps, CodedMatrix& trial) const {
  const Trial tried{trial.specs(), trial.mutable_view()};
  tile.codec.copy_rows(tried.specs, tile.codes, tile.first, tile.n, tried.codes);
  for (int64_t i = 0; i < sweeps; ++i) {
    if (!sweep(tile, tried)) break;
  }
}

// Codes every block of the tile again; whether any changed.
bool Descent::sweep(const FeedbackTile& tile, const Trial& trial) const {
  const Feedback& feedback = tile.feedback;
  const int64_t n = tile.n, n_in = tile.w.cols;
  Matrix<float> gradient(n, feedback.chunk_width());  // E H of the chunk's columns, as of now
  Matrix<float> change(n, feedback.block);            // of E, by the block
  bool any = false;
  size_t block = 0;
  for (int64_t chunk = 0, end = 0; chunk < n_in; chunk = end) {
    end = feedback.chunk_end(chunk);
    kernels().dot_tile(tile.error.row(tile.first), tile.error.stride, n, h_.row(chunk), n_in,
                       end - chunk, n_in, gradient.data(), gradient.cols());
    for (int64_t b = chunk, e = 0; b < end; b = e, ++block) {
      e = feedback.block_end(b);
      if (!descend(tile, trial, block, b, gradient.view().col_range(b - chunk, e - b), change))
        continue;
      any = true;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t c = b; c < e; ++c) {
          if (change(i, c - b) == 0) continue;
          kernels().axpy(change(i, c - b), h_.row(c) + chunk, end - chunk, gradient.row(i));
        }
      }
    }
  }
  return any;
}

// Codes the block at places [begin, begin + gradient.cols) again. Returns whether any row changed,
// and by how much, in `change`.
bool Descent::descend(const FeedbackTile& tile, const Trial& trial, size_t block, int64_t begin,
                      MatrixView<const float> gradient, Matrix<float>& change) const {
  const int64_t n = tile.n, width = gradient.cols, first = tile.first;
  const int64_t col = tile.feedback.order[static_cast<size_t>(begin)];
  const Matrix<float>& inverse = inverses_[block];
  Matrix<float> target(n, width), w_hat(n, width);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < width; ++c) {
      target(i, c) = tile.w(first + i, col + c) - tile.error(first + i, begin + c);
    }
    for (int64_t a = 0; a < width; ++a) {
      kernels().axpy(gradient(i, a), inverse.row(a), width, target.row(i));
    }
  }
  tile.codec.encode_block(target.view(), metrics_[block].view(), first, col, trial.codes,
                          w_hat.view());
  bool any = false;
  for (int64_t i = 0, rows = 0; i < n; i += rows) {
    rows = std::min(tile.codec.block_rows(), n - i);
    for (int64_t r = i; r < i + rows; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        change(r, c) = tile.w(first + r, col + c) - w_hat(r, c) - tile.error(first + r, begin + c);
      }
    }
    const auto strip_change = change.view().row_range(i, rows).col_range(0, width);
    if (loss_change(begin, gradient.row_range(i, rows), strip_change) < 0) {
      any = true;
      tile.codec.copy_rows(trial.specs, trial.codes, first + i, rows, tile.codes);
      for (int64_t r = i; r < i + rows; ++r) {
        for (int64_t c = 0; c < width; ++c) tile.error(first + r, begin + c) += change(r, c);
      }
    } else {
      tile.codec.copy_rows(trial.specs, tile.codes, first + i, rows, trial.codes);
      for (int64_t r = i; r < i + rows; ++r) std::fill_n(change.row(r), width, 0.0f);
    }
  }
  return any;
}

// Of tr(E H E^T) where E changes by `change` in the columns from `begin` on; gradient: E H there.
double Descent::loss_change(int64_t begin, MatrixView<const float> gradient,
                            MatrixView<const float> change) const {
  double sum = 0;
  for (int64_t r = 0; r < change.rows; ++r) {
    for (int64_t a = 0; a < change.cols; ++a) {
      const double step = change(r, a);
      if (step == 0) continue;
      double slope = 2.0 * gradient(r, a);
      for (int64_t c = 0; c < change.cols; ++c) {
        slope += static_cast<double>(h_(begin + a, begin + c)) * change(r, c);
      }
      sum += step * slope;
    }
  }
  return sum;
}

namespace {

Feedback blocks_in_order(MatrixView<const double> hessian, const Codec& codec, double damping) {
  double trace = 0;
  for (int64_t i = 0; i < hessian.rows; ++i) trace += hessian(i, i);
  Feedback blocks;
  blocks.block = codec.block_cols();
  blocks.order.resize(static_cast<size_t>(hessian.rows));
  std::iota(blocks.order.begin(), blocks.order.end(), 0);
  blocks.lambda = damping * trace / static_cast<double>(hessian.rows);
  return blocks;
}

}  // namespace

MatrixDescent::MatrixDescent(MatrixView<const double> hessian, const Codec& codec, double damping)
    : codec_(codec),
      blocks_(blocks_in_order(hessian, codec, damping)),
      descent_(hessian, blocks_) {}

void MatrixDescent::run(MatrixView<const float> w, int64_t sweeps, CodedMatrix& out) const {
  Matrix<float> error(w.rows, w.cols);
  CodedMatrix trial = out;
  const MutableCodes codes = out.mutable_view();
  parallel_for(w.rows, rows_per_piece(codec_), [&](int64_t begin, int64_t end) {
    codec_.decode(codes, begin, end - begin, error.row(begin));
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) error(i, j) = w(i, j) - error(i, j);
    }
    descent_.run({codec_, blocks_, w, begin, end - begin, codes, error.view()}, sweeps, trial);
  });
}

// descent: another solver's codes, and then sweeps over them.
namespace {

constexpr spec::ParamSpec kParams[] = {
    {"solver", spec::ParamKind::kCall, "", 0, 0, {}, "what codes first"},
    {"sweeps", spec::ParamKind::kInt, "3", 1, 100, {}, "that code each block again, at most"},
    {"damping", spec::ParamKind::kNumber, "0.01", 0, 100, {}, "share of mean(diag H)"},
};

class DescentSolver final : public Solver {
 public:
  DescentSolver(std::string text, std::unique_ptr<Solver> solver, const spec::Params& params)
      : spec_(std::move(text)),
        solver_(std::move(solver)),
        sweeps_(params.integer("sweeps")),
        damping_(params.number("damping")) {}

  std::string spec() const override { return spec_; }
  const Codec& codec() const override { return solver_->codec(); }
  bool needs_hessian() const override { return true; }
  double drift() const override { return solver_->drift(); }
  size_t scratch_bytes(int64_t n_out, int64_t n_in) const override {
    const size_t errors = static_cast<size_t>(n_out * n_in) * sizeof(float);
    return std::max(solver_->scratch_bytes(n_out, n_in),
                    Descent::scratch_bytes(n_in, codec().block_cols()) + errors);
  }

  Result<SolveReport> solve(const SolveInput& input, CodedMatrix& out) const override {
    QUERN_ASSIGN(SolveReport report, solver_->solve(input, out));
    if (input.hessian.data == nullptr || !(report.loss > 0)) return report;
    if (input.output_hessian.data != nullptr) {
      report.fallback = "no descent: it knows nothing of an output Hessian";
      return report;
    }
    keep_if_better(input, codec(), out, report.loss, [&] {
      MatrixDescent(input.hessian, codec(), damping_).run(input.w, sweeps_, out);
    });
    return report;
  }

 private:
  std::string spec_;
  std::unique_ptr<Solver> solver_;
  int64_t sweeps_;
  double damping_;
};

Result<std::unique_ptr<Solver>> make_descent(const spec::Params& params) {
  QUERN_ASSIGN(auto solver, make_solver(params.call("solver")));
  if (solver->codec().decides_late()) {
    return usage_error("descent: {} decides late, and its blocks cannot be coded alone",
                       solver->codec().spec());
  }
  QUERN_ASSIGN(std::string text, params.text_around(solver->spec()));
  return std::make_unique<DescentSolver>(std::move(text), std::move(solver), params);
}

}  // namespace

extern const SolverInfo descent_solver_info;
const SolverInfo descent_solver_info = {
    .name = "descent",
    .params = kParams,
    .summary = "another solver's codes, each block coded again with all others fixed",
    .make = make_descent,
};

}  // namespace quern
