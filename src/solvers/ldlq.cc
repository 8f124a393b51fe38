// SPDX-License-Identifier: Apache-2.0
// ldlq: columns are coded one after another, and each first takes up what the columns before it
// did wrong, as far as the layer's inputs make that possible. With an order it is GPTQ.
//
// Definition. Factor H = M D M^T, M unit upper triangular, D diagonal. Then
//     tr(E H E^T) = sum_j D_j |eta_j|^2,   eta_j = E_j + sum_{i<j} E_i M_ij   (columns E_j),
// so for columns in order the best choice of column j given the earlier ones is
//     w_hat_j = nearest( w_j + sum_{i<j} E_i M_ij ).
// GPTQ's inverse-Cholesky update is the same feedback: with H = R R^T (R upper), its factor of
// H^-1 is R^-1, and the row it subtracts is the row of R^-1 over its diagonal. One factorisation
// replaces factor, invert, factor.
//
// Damping: H + damping * mean(diag H) * I; a failed factorisation multiplies damping by 10 and is
// reported. Columns never excited (H_jj = 0) couple to nothing and are plainly rounded. H = 0: rtn.
//
// Groups: `dynamic` fits a group's side info from the corrected weights when its first column is
// due (natural order only); `static` fits all from W beforehand, which act order needs.
// order=act codes columns by falling diag H, the one that matters most first.
//
// Codecs that decide late (ColumnCoder) get the feedback of the column just before as a coupling,
// since its error is known only while the next is coded; D_j is the importance of column j.
//
// Cost: n_in^3 / 3 for the factor in double, n_out n_in^2 for the feedback in float, in row tiles
// that run all columns on their own (rows are independent), the part before the current block of
// columns as one product.
// References: GPTQ arXiv 2210.17323; QuIP arXiv 2307.13304 theorem 1 (LDLQ = OPTQ).
#include <algorithm>
#include <numeric>
#include <vector>

#include "base/parallel.h"
#include "kernels/kernels.h"
#include "linalg/cholesky.h"
#include "solvers/solver.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"codec", ParamKind::kCall, "", 0, 0, {}, "what to code with"},
    {"order", ParamKind::kChoice, "natural", 0, 0, "natural|act", "order of the columns"},
    {"damping", ParamKind::kNumber, "0.01", 0, 100, {}, "share of mean(diag H) added to it"},
    {"groups", ParamKind::kChoice, "auto", 0, 0, "auto|dynamic|static", "when side info is fitted"},
};

constexpr int64_t kColBlock = 64;
constexpr double kMaxDamping = 100;

// M^T in float, rows and columns in coding order: row j holds M_ij for i < j.
struct Feedback {
  Matrix<float> m_transposed;
  std::vector<float> d;        // D / mean(D)
  float power = 0;             // mean over j of sum_{i<j} M_ij^2
  std::vector<int64_t> order;  // coding order -> column
};

class Ldlq final : public Solver {
 public:
  Ldlq(std::string text, std::unique_ptr<Codec> codec, const spec::Params& params)
      : spec_(std::move(text)),
        codec_(std::move(codec)),
        is_act_order_(params.word("order") == "act"),
        is_static_(params.word("groups") == "static" || is_act_order_),
        damping_(params.number("damping")) {}

  std::string spec() const override { return spec_; }
  const Codec& codec() const override { return *codec_; }
  bool needs_hessian() const override { return true; }
  size_t scratch_bytes(int64_t n_out, int64_t n_in) const override {
    return static_cast<size_t>(n_in * n_in) * (sizeof(double) + sizeof(float)) +
           static_cast<size_t>(n_out * n_in) * sizeof(float);
  }

  Result<SolveReport> solve(const SolveInput& input, CodedMatrix& out) const override {
    SolveReport report;
    QUERN_ASSIGN(const Feedback feedback, factor(input, report));
    Matrix<float> error(input.w.rows, input.w.cols);  // columns in coding order
    const MutableCodes codes = out.mutable_view();
    codec_->fit_matrix({input.w, {}, feedback.power}, codes);
    parallel_for(input.w.rows, rows_per_piece(*codec_), [&](int64_t begin, int64_t end) {
      solve_rows(input.w, feedback, begin, end - begin, codes, error.view());
    });
    if (is_act_order_) restore_order(feedback.order, error);
    report.loss = quadratic_form(error.view(), input.hessian);
    report.energy = quadratic_form(input.w, input.hessian);
    return report;
  }

 private:
  Result<Feedback> factor(const SolveInput& input, SolveReport& report) const {
    const int64_t n = input.w.cols;
    Feedback feedback;
    feedback.order.resize(static_cast<size_t>(n));
    std::iota(feedback.order.begin(), feedback.order.end(), 0);
    feedback.m_transposed = Matrix<float>(n, n);
    feedback.d.assign(static_cast<size_t>(n), 1.0f);
    const MatrixView<const double> h = input.hessian;
    double trace = 0;
    if (h.data != nullptr) {
      for (int64_t j = 0; j < n; ++j) trace += h(j, j);
    }
    if (!(trace > 0)) {
      report.fallback = h.data == nullptr ? "no Hessian: rounded to nearest"
                                          : "Hessian is zero: rounded to nearest";
      return feedback;
    }
    if (is_act_order_) {
      std::stable_sort(feedback.order.begin(), feedback.order.end(),
                       [&](int64_t a, int64_t b) { return h(a, a) > h(b, b); });
    }
    for (double damping = damping_; damping <= kMaxDamping;
         damping = std::max(10 * damping, 1e-3), ++report.damping_raises) {
      Matrix<double> m = damped(h, feedback.order, damping * trace / static_cast<double>(n));
      if (!reverse_cholesky(m.view())) continue;
      report.damping = damping;
      double power = 0, sum_d = 0;
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t i = 0; i < j; ++i) {
          feedback.m_transposed(j, i) = static_cast<float>(m(i, j));
          power += m(i, j) * m(i, j);
        }
        sum_d += m(j, j);
      }
      const auto columns = static_cast<double>(n);
      feedback.power = static_cast<float>(power / columns);
      for (int64_t j = 0; j < n; ++j) {
        feedback.d[static_cast<size_t>(j)] = static_cast<float>(m(j, j) * columns / sum_d);
      }
      return feedback;
    }
    return error("ldlq: the Hessian has no factor even with damping {} (is it finite?)",
                 kMaxDamping);
  }

  static Matrix<double> damped(MatrixView<const double> h, const std::vector<int64_t>& order,
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

  // Codes rows [first, first + n) over all columns; `error` gets W - W_hat in coding order.
  void solve_rows(MatrixView<const float> w, const Feedback& feedback, int64_t first, int64_t n,
                  const MutableCodes& codes, MatrixView<float> error) const {
    const int64_t group = codec_->group_cols(w.cols);
    if (is_static_ || codec_->decides_late()) {
      for (int64_t col = 0; col < w.cols; col += group) {
        const int64_t width = std::min(group, w.cols - col);
        codec_->fit(w.row_range(first, n).col_range(col, width), {}, first, col, codes);
      }
    }
    const auto late = codec_->column_coder(first, n, codes);
    const int64_t lag = late != nullptr ? 1 : 0;  // columns until an error is known
    const Matrix<float>& m = feedback.m_transposed;
    Matrix<float> past(n, kColBlock);        // feedback of the columns before b - lag
    Matrix<float> recent(kColBlock + 1, n);  // row r: the error of column b - lag + r
    std::vector<float> column(static_cast<size_t>(n)), target(static_cast<size_t>(n));
    const auto keep = [&](int64_t j, const float* column_error) {  // of column j
      if (j < 0) return;
      for (int64_t i = 0; i < n; ++i) error(first + i, j) = column_error[i];
    };
    for (int64_t b = 0; b < w.cols; b += kColBlock) {
      const int64_t width = std::min(kColBlock, w.cols - b);
      kernels().dot_tile(error.row(first), error.stride, n, m.row(b), w.cols, width,
                         std::max<int64_t>(0, b - lag), past.data(), kColBlock);
      for (int64_t j = 0; j < width; ++j) {
        const int64_t col = feedback.order[static_cast<size_t>(b + j)];
        for (int64_t i = 0; i < n; ++i) {
          column[static_cast<size_t>(i)] = w(first + i, col);
          target[static_cast<size_t>(i)] = w(first + i, col) + past(i, j);
        }
        for (int64_t r = b == 0 ? lag : 0; r < j; ++r) {
          kernels().axpy(m(b + j, b - lag + r), recent.row(r), n, target.data());
        }
        float* column_error = recent.row(j);
        if (late != nullptr) {
          const float coupling = b + j > 0 ? m(b + j, b + j - 1) : 0;
          late->push(
              {column.data(), target.data(), coupling, feedback.d[static_cast<size_t>(b + j)]},
              column_error);
        } else {
          if (!is_static_ && col % group == 0) fit_group(w, feedback, error, first, n, col, codes);
          codec_->encode({target.data(), n, 1, 1}, first, col, codes, {column_error, n, 1, 1});
          for (int64_t i = 0; i < n; ++i) {
            column_error[i] = column[static_cast<size_t>(i)] - column_error[i];
          }
        }
        keep(b + j - lag, column_error);
      }
    }
    if (late != nullptr) {
      late->finish(recent.row(0));
      keep(w.cols - 1, recent.row(0));
    }
  }

  // Fits the group that starts at column `col` from the weights as the columns coded so far would
  // have them corrected: with Q the coded columns and G the group, W_G + (E_Q M_QG) M_GG^-1, which
  // is what GPTQ's updated W holds there. `error` has E_Q of rows [first, first + n).
  void fit_group(MatrixView<const float> w, const Feedback& feedback, MatrixView<const float> error,
                 int64_t first, int64_t n, int64_t col, const MutableCodes& codes) const {
    const int64_t width = std::min(codec_->group_cols(w.cols), w.cols - col);
    const Matrix<float>& m_transposed = feedback.m_transposed;
    Matrix<float> group(n, width), correction(width, n);  // correction: one column per row
    kernels().dot_tile(error.row(first), error.stride, n, m_transposed.row(col), w.cols, width, col,
                       group.data(), width);
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t i = 0; i < n; ++i) correction(c, i) = group(i, c);
      for (int64_t b = 0; b < c; ++b) {
        kernels().axpy(-m_transposed(col + c, col + b), correction.row(b), n, correction.row(c));
      }
      for (int64_t i = 0; i < n; ++i) group(i, c) = w(first + i, col + c) + correction(c, i);
    }
    codec_->fit(group.view(), {}, first, col, codes);
  }

  static void restore_order(const std::vector<int64_t>& order, Matrix<float>& error) {
    std::vector<float> row(order.size());
    for (int64_t i = 0; i < error.rows(); ++i) {
      for (size_t j = 0; j < order.size(); ++j) {
        row[static_cast<size_t>(order[j])] = error(i, static_cast<int64_t>(j));
      }
      std::copy(row.begin(), row.end(), error.row(i));
    }
  }

  std::string spec_;
  std::unique_ptr<Codec> codec_;
  bool is_act_order_;
  bool is_static_;
  double damping_;
};

Result<std::unique_ptr<Solver>> make_ldlq(const spec::Params& params) {
  QUERN_ASSIGN(auto codec, make_codec(params.call("codec")));
  if (codec->block_cols() != 1) {
    return usage_error("ldlq: codes one column at a time, but {} codes {} together; use block_ldlq",
                       codec->spec(), codec->block_cols());
  }
  if (params.word("order") == "act" && codec->decides_late()) {
    return usage_error("ldlq: {} codes columns in their natural order only", codec->spec());
  }
  if (params.word("order") == "act" && params.word("groups") == "dynamic") {
    return usage_error(
        "ldlq: order=act visits columns of all groups at once and needs "
        "groups=static");
  }
  spec::Call canonical = params.canonical();
  QUERN_ASSIGN(canonical.args[0].value.call[0], spec::parse_call(codec->spec()));
  return std::make_unique<Ldlq>(print(canonical), std::move(codec), params);
}

}  // namespace

extern const SolverInfo ldlq_solver_info;
const SolverInfo ldlq_solver_info = {
    .name = "ldlq",
    .params = kParams,
    .summary = "column by column with error feedback (GPTQ)",
    .make = make_ldlq,
};

}  // namespace quern
