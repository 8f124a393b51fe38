// SPDX-License-Identifier: Apache-2.0
#include "solvers/feedback.h"

#include <algorithm>
#include <numeric>

#include "base/parallel.h"
#include "kernels/kernels.h"
#include "linalg/cholesky.h"

namespace quern {
namespace {

constexpr double kMaxDamping = 100;

// Blocks by falling mean of their diagonal, columns of a block side by side.
std::vector<int64_t> act_order(MatrixView<const double> h, int64_t block) {
  struct Block {
    int64_t first;
    double mean;
  };
  std::vector<Block> blocks;
  for (int64_t first = 0; first < h.rows; first += block) {
    const int64_t end = std::min(first + block, h.rows);
    double sum = 0;
    for (int64_t j = first; j < end; ++j) sum += h(j, j);
    blocks.push_back({first, sum / static_cast<double>(end - first)});
  }
  std::stable_sort(blocks.begin(), blocks.end(),
                   [](const Block& a, const Block& b) { return a.mean > b.mean; });
  std::vector<int64_t> order;
  for (const Block& b : blocks) {
    for (int64_t j = b.first; j < std::min(b.first + block, h.rows); ++j) order.push_back(j);
  }
  return order;
}

Matrix<double> damped(MatrixView<const double> h, const std::vector<int64_t>& order,
                      double lambda) {
  const int64_t n = h.rows;
  Matrix<double> m(n, n);
  for (int64_t i = 0; i < n; ++i) {
    const double* row = h.row(order[static_cast<size_t>(i)]);
    for (int64_t j = 0; j < n; ++j) m(i, j) = row[order[static_cast<size_t>(j)]];
    m(i, i) += lambda;
  }
  return m;
}

// The pivots of columns [col, col + width) for codecs that look at them, else nothing.
std::vector<float> importance(const Codec& codec, const Feedback& feedback, int64_t col,
                              int64_t width) {
  std::vector<float> weight;
  if (!codec.weighs_columns()) return weight;
  weight.resize(static_cast<size_t>(width));
  for (size_t place = 0; place < feedback.order.size(); ++place) {
    const int64_t column = feedback.order[place] - col;
    if (column >= 0 && column < width) weight[static_cast<size_t>(column)] = feedback.d[place];
  }
  return weight;
}

// M (above the diagonal, D on it) becomes L in the rows above each diagonal block: X B = M solved
// column by column. Within diagonal blocks M stays.
void divide_by_diagonal_blocks(const Feedback& feedback, Matrix<double>& m) {
  constexpr int64_t kRows = 64;
  if (feedback.block == 1) return;
  parallel_for(m.rows(), kRows, [&](int64_t first, int64_t last) {
    for (int64_t b = 0, end = 0; b < m.cols(); b = end) {
      end = feedback.block_end(b);
      for (int64_t i = first; i < std::min(last, b); ++i) {
        double* row = m.row(i);
        for (int64_t c = b; c < end; ++c) {
          for (int64_t a = b; a < c; ++a) row[c] -= row[a] * m(a, c);
        }
      }
    }
  });
}

// S = B D B^T of the block at places [begin, end); B is unit upper triangular.
void take_metric(const Matrix<double>& m, int64_t begin, int64_t end, Matrix<float>& metric) {
  const auto b = [&](int64_t i, int64_t c) { return i == c ? 1.0 : m(i, c); };
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = begin; j < end; ++j) {
      double sum = 0;
      for (int64_t c = std::max(i, j); c < end; ++c) sum += b(i, c) * m(c, c) * b(j, c);
      metric(i, j - begin) = static_cast<float>(sum);
    }
  }
}

void take_factor(Matrix<double>& m, Feedback& feedback) {
  const int64_t n = m.rows();
  double power = 0, sum_d = 0;
  divide_by_diagonal_blocks(feedback, m);
  for (int64_t b = 0, end = 0; b < n; b = end) {
    end = feedback.block_end(b);
    for (int64_t j = b; j < end; ++j) {
      for (int64_t i = 0; i < b; ++i) {
        feedback.l_transposed(j, i) = static_cast<float>(m(i, j));
        power += m(i, j) * m(i, j);
      }
      sum_d += m(j, j);
    }
    take_metric(m, b, end, feedback.metric);
  }
  const auto columns = static_cast<double>(n);
  feedback.power = static_cast<float>(power / columns);
  for (int64_t j = 0; j < n; ++j) {
    feedback.d[static_cast<size_t>(j)] = static_cast<float>(m(j, j) * columns / sum_d);
  }
}

void restore_order(const std::vector<int64_t>& order, Matrix<float>& error) {
  std::vector<float> row(order.size());
  for (int64_t i = 0; i < error.rows(); ++i) {
    for (size_t j = 0; j < order.size(); ++j) {
      row[static_cast<size_t>(order[j])] = error(i, static_cast<int64_t>(j));
    }
    std::copy(row.begin(), row.end(), error.row(i));
  }
}

}  // namespace

Result<FeedbackOptions> read_feedback_options(std::string_view solver, const spec::Params& params,
                                              const Codec& codec) {
  FeedbackOptions options;
  options.solver = solver;
  options.damping = params.number("damping");
  options.drift = params.number("drift");
  options.block = codec.block_cols();
  options.strip = std::max(options.strip, codec.block_rows());
  if (params.word("order") == "act") options.order = ColumnOrder::kAct;
  options.is_static = params.word("groups") == "static" || options.order == ColumnOrder::kAct;
  if (options.order == ColumnOrder::kAct && params.word("groups") == "dynamic") {
    return usage_error("{}: order=act visits columns of all groups at once and needs groups=static",
                       solver);
  }
  return options;
}

size_t feedback_scratch_bytes(const FeedbackOptions& options, int64_t n_out, int64_t n_in) {
  const auto square = static_cast<size_t>(n_in * n_in);
  const size_t solving =
      square * (sizeof(double) + sizeof(float)) + static_cast<size_t>(n_out * n_in) * sizeof(float);
  // Before: the sum, its copy, the factor and its transpose; what is left of it while solving.
  const size_t drift = options.drift > 0 ? square * (4 * sizeof(double) + sizeof(float)) : 0;
  return std::max(solving + drift / 4, drift);
}

namespace {

Result<Feedback> factor(MatrixView<const double> h, int64_t n, const FeedbackOptions& options,
                        SolveReport& report) {
  Feedback feedback;
  feedback.block = options.block;
  feedback.order.resize(static_cast<size_t>(n));
  std::iota(feedback.order.begin(), feedback.order.end(), 0);
  feedback.l_transposed = Matrix<float>(n, n);
  feedback.d.assign(static_cast<size_t>(n), 1.0f);
  feedback.metric = Matrix<float>(n, options.block);
  for (int64_t b = 0, end = 0; b < n; b = end) {
    end = feedback.block_end(b);
    for (int64_t j = b; j < end; ++j) feedback.metric(j, j - b) = 1;
  }
  double trace = 0;
  if (h.data != nullptr) {
    for (int64_t j = 0; j < n; ++j) trace += h(j, j);
  }
  if (trace == 0) {
    report.fallback = h.data == nullptr ? "no Hessian: rounded to nearest"
                                        : "Hessian is zero: rounded to nearest";
    return feedback;
  }
  if (options.order == ColumnOrder::kAct) feedback.order = act_order(h, options.block);
  for (double damping = options.damping; damping <= kMaxDamping;
       damping = std::max(10 * damping, 1e-3), ++report.damping_raises) {
    feedback.lambda = damping * trace / static_cast<double>(n);
    Matrix<double> m = damped(h, feedback.order, feedback.lambda);
    if (!reverse_cholesky(m.view())) continue;
    report.damping = damping;
    take_factor(m, feedback);
    return feedback;
  }
  return error("{}: the Hessian has no factor even with damping {} (is it finite?)", options.solver,
               kMaxDamping);
}

// Codes strip after strip from W + B^T E. `error` ends up in the natural order of columns.
void code_two_sided(const SolveInput& input, const Codec& codec, const Feedback& feedback,
                    const MutableCodes& codes,
                    const std::function<void(const FeedbackTile&)>& code_tile,
                    Matrix<float>& error) {
  constexpr int64_t kRows = 8;  // of a strip that a thread takes, where the codec lets it
  const int64_t n_out = input.w.rows, n_in = input.w.cols;
  const Matrix<float>& l_transposed = feedback.outputs->l_transposed;
  Matrix<float> wanted(n_out, n_in), missing(n_out, n_in);  // W + B^T E and what W_hat lacks of it
  for (int64_t strip = 0, end = 0; strip < n_out; strip = end) {
    end = feedback.outputs->block_end(strip);
    parallel_for(end - strip, std::max(kRows, codec.block_rows()), [&](int64_t from, int64_t to) {
      const int64_t first = strip + from, n = to - from;
      for (int64_t r = first; r < first + n; ++r) {
        std::copy(input.w.row(r), input.w.row(r) + n_in, wanted.row(r));
      }
      for (int64_t i = 0; i < strip; ++i) {
        for (int64_t r = first; r < first + n; ++r) {
          kernels().axpy(l_transposed(r, i), error.row(i), n_in, wanted.row(r));
        }
      }
      code_tile({codec, feedback, wanted.view(), first, n, codes, missing.view()});
      for (int64_t r = first; r < first + n; ++r) {
        for (int64_t place = 0; place < n_in; ++place) {
          const int64_t j = feedback.order[static_cast<size_t>(place)];
          error(r, j) = missing(r, place) - (wanted(r, j) - input.w(r, j));
        }
      }
    });
  }
}

}  // namespace

Result<Feedback> factor_feedback(const SolveInput& input, const FeedbackOptions& options,
                                 SolveReport& report) {
  QUERN_ASSIGN(Feedback feedback, factor(input.hessian, input.w.cols, options, report));
  if (input.output_hessian.data != nullptr) {
    FeedbackOptions rows = options;
    rows.order = ColumnOrder::kNatural;
    rows.block = options.strip;
    SolveReport rows_report;  // the report's damping is that of H
    QUERN_ASSIGN(Feedback outputs, factor(input.output_hessian, input.w.rows, rows, rows_report));
    report.damping_raises += rows_report.damping_raises;
    feedback.outputs = std::make_shared<const Feedback>(std::move(outputs));
  }
  return feedback;
}

void code_with_feedback(const SolveInput& input, const Codec& codec, const Feedback& feedback,
                        CodedMatrix& out, SolveReport& report,
                        const std::function<void(const FeedbackTile&)>& code_tile,
                        CodedMatrix* trial) {
  Matrix<float> error(input.w.rows, input.w.cols);  // columns in coding order
  const MutableCodes codes = out.mutable_view();
  const std::vector<float> weight = importance(codec, feedback, 0, input.w.cols);
  const float rows_power = feedback.outputs != nullptr ? feedback.outputs->power : 0;
  codec.fit_matrix({input.w, weight, (1 + feedback.power) * (1 + rows_power) - 1}, codes);
  if (trial != nullptr) *trial = out;
  if (feedback.outputs != nullptr) {
    code_two_sided(input, codec, feedback, codes, code_tile, error);
  } else {
    parallel_for(input.w.rows, rows_per_piece(codec), [&](int64_t begin, int64_t end) {
      code_tile({codec, feedback, input.w, begin, end - begin, codes, error.view()});
    });
    if (!std::is_sorted(feedback.order.begin(), feedback.order.end())) {
      restore_order(feedback.order, error);
    }
  }
  report.loss = quadratic_form(error.view(), input.hessian);
  report.energy = quadratic_form(input.w, input.hessian);
}

void fit_static(const FeedbackTile& tile) {
  const int64_t n_in = tile.w.cols, group = tile.codec.group_cols(n_in);
  for (int64_t col = 0; col < n_in; col += group) {
    const int64_t width = std::min(group, n_in - col);
    tile.codec.fit(tile.w.row_range(tile.first, tile.n).col_range(col, width),
                   importance(tile.codec, tile.feedback, col, width), tile.first, col, tile.codes);
  }
}

void fit_corrected(const FeedbackTile& tile, int64_t col) {
  const int64_t n = tile.n, n_in = tile.w.cols;
  const int64_t width = std::min(tile.codec.group_cols(n_in), n_in - col);
  const std::vector<float> weight = importance(tile.codec, tile.feedback, col, width);
  if (col == 0) {  // no errors yet
    const auto first_group = tile.w.row_range(tile.first, n).col_range(0, width);
    return tile.codec.fit(first_group, weight, tile.first, 0, tile.codes);
  }
  const Matrix<float>& l_transposed = tile.feedback.l_transposed;
  Matrix<float> group(n, width), correction(width, n);  // correction: one column per row
  kernels().dot_tile(tile.error.row(tile.first), tile.error.stride, n, l_transposed.row(col), n_in,
                     width, col, group.data(), width);
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t i = 0; i < n; ++i) correction(c, i) = group(i, c);
    for (int64_t b = 0; b < c; ++b) {
      kernels().axpy(-l_transposed(col + c, col + b), correction.row(b), n, correction.row(c));
    }
    for (int64_t i = 0; i < n; ++i)
      group(i, c) = tile.w(tile.first + i, col + c) + correction(c, i);
  }
  tile.codec.fit(group.view(), weight, tile.first, col, tile.codes);
}

}  // namespace quern
