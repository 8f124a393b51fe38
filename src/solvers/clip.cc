// SPDX-License-Identifier: Apache-2.0
// clip: rounding to nearest after the largest weights of each row and group were clamped, by the
// factor 1, 1 - step, 1 - 2 step, ... that gives the least error of the outputs (the clip search of
// AWQ, arXiv 2306.00978):
//
//   (w_g - Q(clamp w_g)) H_gg (w_g - Q(clamp w_g))^T,   H_gg: the inputs of the group
//
// Groups are searched by themselves, as the paper does, so that what one group does to the outputs
// is not made up for by another. The first factor is plain rounding.
#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "kernels/kernels.h"
#include "solvers/solver.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"codec", ParamKind::kCall, "", 0, 0, {}, "what to code with"},
    {"steps", ParamKind::kInt, "10", 1, 100, {}, "factors to try"},
    {"step", ParamKind::kNumber, "0.05", 0.001, 0.5, {}, "from one factor to the next"},
};

class Clip final : public Solver {
 public:
  Clip(std::string text, std::unique_ptr<Codec> codec, const spec::Params& params)
      : spec_(std::move(text)),
        codec_(std::move(codec)),
        steps_(static_cast<int>(params.integer("steps"))),
        step_(static_cast<float>(params.number("step"))) {}

  std::string spec() const override { return spec_; }
  const Codec& codec() const override { return *codec_; }
  bool needs_hessian() const override { return true; }
  size_t scratch_bytes(int64_t n_out, int64_t n_in) const override {
    return static_cast<size_t>(n_out * n_in) * sizeof(float);
  }

  Result<SolveReport> solve(const SolveInput& input, CodedMatrix& out) const override {
    const int64_t group = codec_->group_cols(input.w.cols);
    const MutableCodes codes = out.mutable_view();
    codec_->fit_matrix({input.w}, codes);
    for (int64_t col = 0; col < input.w.cols; col += group) {
      const int64_t width = std::min(group, input.w.cols - col);
      const Matrix<float> h = inputs_of(input.hessian, col, width);
      parallel_for(input.w.rows, rows_per_piece(*codec_), [&](int64_t begin, int64_t end) {
        code(input.w.row_range(begin, end - begin).col_range(col, width), h, begin, col, codes);
      });
    }
    SolveReport report;
    report.loss = coded_loss(input, *codec_, out);
    report.energy = quadratic_form(input.w, input.hessian);
    if (input.hessian.data == nullptr) report.fallback = "no inputs were seen: plain errors";
    return report;
  }

 private:
  // H_gg; the identity where there is none.
  static Matrix<float> inputs_of(MatrixView<const double> hessian, int64_t col, int64_t width) {
    Matrix<float> h(width, width);
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const double plain = i == j ? 1 : 0;
        h(i, j) = static_cast<float>(hessian.data == nullptr ? plain : hessian(col + i, col + j));
      }
    }
    return h;
  }

  // One group of a strip.
  void code(MatrixView<const float> w, const Matrix<float>& h, int64_t row, int64_t col,
            const MutableCodes& codes) const {
    Matrix<float> clamped(w.rows, w.cols), best(w.rows, w.cols), w_hat(w.rows, w.cols),
        product(w.rows, w.cols);
    std::vector<double> least(static_cast<size_t>(w.rows), INFINITY);
    for (int s = 0; s < steps_; ++s) {
      const float factor = std::max(0.0f, 1 - static_cast<float>(s) * step_);
      for (int64_t i = 0; i < w.rows; ++i) clamp_row(w.row(i), w.cols, factor, clamped.row(i));
      codec_->fit(clamped.view(), {}, row, col, codes);
      codec_->encode(clamped.view(), row, col, codes, w_hat.view());
      for (int64_t i = 0; i < w.rows; ++i) {
        for (int64_t j = 0; j < w.cols; ++j) w_hat(i, j) = w(i, j) - w_hat(i, j);
      }
      kernels().dot_tile(w_hat.data(), w.cols, w.rows, h.data(), w.cols, w.cols, w.cols,
                         product.data(), w.cols);
      for (int64_t i = 0; i < w.rows; ++i) {
        double loss = 0;
        for (int64_t j = 0; j < w.cols; ++j) {
          loss += static_cast<double>(product(i, j)) * w_hat(i, j);
        }
        if (!(loss < least[static_cast<size_t>(i)]) && s > 0) continue;
        least[static_cast<size_t>(i)] = loss;
        std::copy_n(clamped.row(i), w.cols, best.row(i));
      }
    }
    codec_->fit(best.view(), {}, row, col, codes);
    codec_->encode(best.view(), row, col, codes, w_hat.view());
  }

  static void clamp_row(const float* w, int64_t n, float factor, float* dst) {
    float largest = 0;
    for (int64_t j = 0; j < n; ++j) largest = std::max(largest, std::abs(w[j]));
    const float end = factor * largest;
    for (int64_t j = 0; j < n; ++j) dst[j] = std::min(std::max(w[j], -end), end);
  }

  std::string spec_;
  std::unique_ptr<Codec> codec_;
  int steps_;
  float step_;
};

}  // namespace

extern const SolverInfo clip_solver_info;
const SolverInfo clip_solver_info = {
    .name = "clip",
    .params = kParams,
    .summary = "rounds to nearest after clamping each group as its inputs like best (AWQ)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Solver>> {
      QUERN_ASSIGN(auto codec, make_codec(params.call("codec")));
      QUERN_ASSIGN(std::string text, params.text_around(codec->spec()));
      return std::make_unique<Clip>(std::move(text), std::move(codec), params);
    },
};

}  // namespace quern
