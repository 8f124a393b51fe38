// SPDX-License-Identifier: Apache-2.0
// rtn: every block to its nearest codeword, group by group; the baseline of every comparison. With
// weigh=inputs codecs that choose side info by the importance of columns are told the mean square
// of what each column reads, with weigh=gradients the mean square of the loss's gradients along
// each column and row; otherwise a Hessian only weighs the reported loss.
#include <algorithm>

#include "base/parallel.h"
#include "solvers/solver.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"codec", ParamKind::kCall, "", 0, 0, {}, "what to code with"},
    {"weigh", ParamKind::kChoice, "none", 0, 0, "none|inputs|gradients",
     "what makes columns important"},
};

class Rtn final : public Solver {
 public:
  Rtn(std::string text, std::unique_ptr<Codec> codec, const std::string& weigh)
      : spec_(std::move(text)),
        codec_(std::move(codec)),
        by_inputs_(weigh == "inputs"),
        by_gradients_(weigh == "gradients") {}

  std::string spec() const override { return spec_; }
  const Codec& codec() const override { return *codec_; }
  bool needs_hessian() const override { return by_inputs_; }
  bool needs_gradients() const override { return by_gradients_; }
  size_t scratch_bytes(int64_t n_out, int64_t n_in) const override {
    return static_cast<size_t>(n_out * n_in) * sizeof(float);
  }

  Result<SolveReport> solve(const SolveInput& input, CodedMatrix& out) const override {
    const MatrixView<const float> w = input.w;
    const int64_t group = codec_->group_cols(w.cols);
    const MutableCodes codes = out.mutable_view();
    Matrix<float> error(w.rows, w.cols);  // first W_hat, then W - W_hat
    SolveReport report;
    const std::vector<float> weight = importance(input, report);
    MatrixSource source{w, weight};
    if (by_gradients_) source.row_weight = input.row_gradients;
    codec_->fit_matrix(source, codes);
    parallel_for(w.rows, rows_per_piece(*codec_), [&](int64_t begin, int64_t end) {
      const int64_t n = end - begin;
      for (int64_t col = 0; col < w.cols; col += group) {
        const int64_t width = std::min(group, w.cols - col);
        const auto part = w.row_range(begin, n).col_range(col, width);
        const auto first = weight.begin() + (weight.empty() ? 0 : col);
        codec_->fit(part, {first, weight.empty() ? first : first + width}, begin, col, codes);
        codec_->encode(part, begin, col, codes,
                       error.view().row_range(begin, n).col_range(col, width));
      }
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < w.cols; ++j) error(i, j) = w(i, j) - error(i, j);
      }
    });
    report.loss = quadratic_form(error.view(), input.hessian);
    report.energy = quadratic_form(w, input.hessian);
    return report;
  }

 private:
  // Of each column; empty where all count alike.
  std::vector<float> importance(const SolveInput& input, SolveReport& report) const {
    std::vector<float> weight;
    if (!codec_->weighs_columns() || (!by_inputs_ && !by_gradients_)) return weight;
    if (by_gradients_ && !input.column_gradients.empty()) {
      return {input.column_gradients.begin(), input.column_gradients.end()};
    }
    if (input.hessian.data == nullptr) {
      report.fallback = "no inputs were seen: columns count alike";
      return weight;
    }
    for (int64_t j = 0; j < input.w.cols; ++j) {
      weight.push_back(static_cast<float>(input.hessian(j, j)));
    }
    return weight;
  }

  std::string spec_;
  std::unique_ptr<Codec> codec_;
  bool by_inputs_, by_gradients_;
};

}  // namespace

extern const SolverInfo rtn_solver_info;
const SolverInfo rtn_solver_info = {
    .name = "rtn",
    .params = kParams,
    .summary = "round each block to its nearest codeword",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Solver>> {
      QUERN_ASSIGN(auto codec, make_codec(params.call("codec")));
      QUERN_ASSIGN(std::string text, params.text_around(codec->spec()));
      return std::make_unique<Rtn>(std::move(text), std::move(codec), params.word("weigh"));
    },
};

}  // namespace quern
