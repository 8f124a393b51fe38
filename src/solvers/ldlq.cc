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
#include <vector>

#include "kernels/kernels.h"
#include "solvers/feedback.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    kFeedbackCodec, kFeedbackOrder, kFeedbackDamping, kFeedbackGroups, kFeedbackDrift,
};

constexpr int64_t kColBlock = 64;

class Ldlq final : public Solver {
 public:
  Ldlq(std::string text, std::unique_ptr<Codec> codec, const FeedbackOptions& options)
      : spec_(std::move(text)), codec_(std::move(codec)), options_(options) {}

  std::string spec() const override { return spec_; }
  const Codec& codec() const override { return *codec_; }
  bool needs_hessian() const override { return true; }
  double drift() const override { return options_.drift; }
  size_t scratch_bytes(int64_t n_out, int64_t n_in) const override {
    return feedback_scratch_bytes(options_, n_out, n_in);
  }

  Result<SolveReport> solve(const SolveInput& input, CodedMatrix& out) const override {
    SolveReport report;
    QUERN_ASSIGN(const Feedback feedback, factor_feedback(input, options_, report));
    code_with_feedback(input, *codec_, feedback, out, report,
                       [&](const FeedbackTile& tile) { code_columns(tile); });
    return report;
  }

 private:
  // Codes all columns of a tile, one after another.
  void code_columns(const FeedbackTile& tile) const {
    const auto& [codec, feedback, w, first, n, codes, error] = tile;
    const int64_t group = codec.group_cols(w.cols);
    const bool is_static = options_.is_static || codec.decides_late();
    if (is_static) fit_static(tile);
    const auto late = codec.column_coder(first, n, codes);
    const int64_t lag = late != nullptr ? 1 : 0;  // columns until an error is known
    const Matrix<float>& m = feedback.l_transposed;
    Matrix<float> past(n, kColBlock);        // feedback of the columns before b - lag
    Matrix<float> recent(kColBlock + 1, n);  // row r: the error of column b - lag + r
    std::vector<float> column(static_cast<size_t>(n)), target(static_cast<size_t>(n));
    const auto keep = [&tile](int64_t j, const float* column_error) {  // of column j
      if (j < 0) return;
      for (int64_t i = 0; i < tile.n; ++i) tile.error(tile.first + i, j) = column_error[i];
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
          if (!is_static && col % group == 0) {
            fit_corrected(tile, col);
          }
          codec.encode({target.data(), n, 1, 1}, first, col, codes, {column_error, n, 1, 1});
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

  std::string spec_;
  std::unique_ptr<Codec> codec_;
  FeedbackOptions options_;
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
  QUERN_ASSIGN(const FeedbackOptions options, read_feedback_options("ldlq", params, *codec));
  QUERN_ASSIGN(std::string text, params.text_around(codec->spec()));
  return std::make_unique<Ldlq>(std::move(text), std::move(codec), options);
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
