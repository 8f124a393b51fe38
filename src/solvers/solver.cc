// SPDX-License-Identifier: Apache-2.0
#include "solvers/solver.h"

#include <algorithm>
#include <vector>

#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "spec/registry.h"

namespace quern {

#define QUERN_SOLVER(name) extern const SolverInfo name##_solver_info;
#include "solvers/list.inc"
#undef QUERN_SOLVER

std::span<const SolverInfo> solvers() {
  static const SolverInfo rows[] = {
#define QUERN_SOLVER(name) name##_solver_info,
#include "solvers/list.inc"
#undef QUERN_SOLVER
  };
  return rows;
}

const SolverInfo* find_solver(std::string_view name) { return spec::find(solvers(), name); }

Result<std::unique_ptr<Solver>> make_solver(const spec::Call& call) {
  return spec::make(solvers(), call, "solver");
}

int64_t rows_per_piece(const Codec& codec) {
  return ceil_div(codec.encode_rows(), codec.block_rows()) * codec.block_rows();
}

namespace {

constexpr int64_t kRowTile = 128;  // rows of A per piece of work; each converts H once
constexpr int64_t kColTile = 64;   // rows of H converted at a time

// Sum over rows [first, first + n) of a_i^T H a_i.
double form_of_rows(MatrixView<const float> a, MatrixView<const double> h, int64_t first,
                    int64_t n) {
  double sum = 0;
  if (h.data == nullptr) {
    for (int64_t i = first; i < first + n; ++i) {
      for (int64_t j = 0; j < a.cols; ++j) sum += static_cast<double>(a(i, j)) * a(i, j);
    }
    return sum;
  }
  // H is symmetric: what lies before the tile on the diagonal counts twice.
  AlignedVector<float> h_rows(static_cast<size_t>(kColTile * a.cols));
  AlignedVector<float> before(static_cast<size_t>(n * kColTile)), diagonal(before.size());
  for (int64_t c = 0; c < a.cols; c += kColTile) {
    const int64_t width = std::min(kColTile, a.cols - c);
    for (int64_t r = 0; r < width; ++r) {
      std::transform(h.row(c + r), h.row(c + r) + c + width, h_rows.data() + r * a.cols,
                     [](double value) { return static_cast<float>(value); });
    }
    kernels().dot_tile(a.row(first), a.stride, n, h_rows.data(), a.cols, width, c, before.data(),
                       width);
    kernels().dot_tile(a.row(first) + c, a.stride, n, h_rows.data() + c, a.cols, width, width,
                       diagonal.data(), width);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t r = 0; r < width; ++r) {
        const auto place = static_cast<size_t>(i * width + r);
        sum += (2 * static_cast<double>(before[place]) + diagonal[place]) * a(first + i, c + r);
      }
    }
  }
  return sum;
}

}  // namespace

double quadratic_form(MatrixView<const float> a, MatrixView<const double> h) {
  std::vector<double> parts(static_cast<size_t>(ceil_div(a.rows, kRowTile)));
  parallel_for(a.rows, kRowTile, [&](int64_t begin, int64_t end) {
    parts[static_cast<size_t>(begin / kRowTile)] = form_of_rows(a, h, begin, end - begin);
  });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

double coded_loss(const SolveInput& input, const Codec& codec, const CodedMatrix& codes) {
  const MatrixView<const float> w = input.w;
  Matrix<float> error(w.rows, w.cols);
  parallel_for(w.rows, rows_per_piece(codec), [&](int64_t begin, int64_t end) {
    codec.decode(codes.view(), begin, end - begin, error.row(begin));
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) error(i, j) = w(i, j) - error(i, j);
    }
  });
  return quadratic_form(error.view(), input.hessian);
}

void keep_if_better(const SolveInput& input, const Codec& codec, CodedMatrix& codes, double& loss,
                    const std::function<void()>& step) {
  CodedMatrix before = codes;
  step();
  const double now = coded_loss(input, codec, codes);
  if (now < loss) {
    loss = now;
  } else {
    codes = std::move(before);
  }
}

}  // namespace quern
