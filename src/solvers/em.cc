// SPDX-License-Identifier: Apache-2.0
// em: codes and side info in turn, as AQLM does. A solver codes the matrix; then each round refits
// what the side info shares for the codes as they are (refit.h), one part after another, and
// codes all blocks again for the new side info (descent.h). A step that does not lower tr(E H E^T),
// after all rounding, is taken back; so the loss never rises. Rounds end when one lowers it by less
// than `tolerance` of itself.
//
// Started from rtn this is AQLM's loop, with conjugate gradients for Adam and all books of a block
// chosen together; from block_ldlq it begins where feedback ends. With a codebook it is GPTVQ's
// update after coding, and repeats it.
//
// Cost of a round: at most kSteps + 2 products n_out n_in^2 for each part, one for each loss, and
// `sweeps` sweeps.
// Reference: AQLM (arXiv 2401.06118), GPTVQ (arXiv 2402.15319).
#include "solvers/descent.h"
#include "solvers/refit.h"

namespace quern {
namespace {

constexpr int kSteps = 20;  // of conjugate gradients

constexpr spec::ParamSpec kParams[] = {
    {"solver", spec::ParamKind::kCall, "", 0, 0, {}, "what codes first; a codec: block_ldlq of it"},
    {"rounds", spec::ParamKind::kInt, "10", 0, 1000, {}, "of refitting and coding, at most"},
    {"sweeps", spec::ParamKind::kInt, "1", 0, 100, {}, "that code each block again, in a round"},
    {"tolerance", spec::ParamKind::kNumber, "0.01", 0, 1, {}, "rounds end at a smaller gain"},
    {"damping", spec::ParamKind::kNumber, "0.01", 0, 100, {}, "of sweeps, share of mean(diag H)"},
};

class Em final : public Solver {
 public:
  Em(std::string text, std::unique_ptr<Solver> solver, const spec::Params& params)
      : spec_(std::move(text)),
        solver_(std::move(solver)),
        rounds_(params.integer("rounds")),
        sweeps_(params.integer("sweeps")),
        tolerance_(params.number("tolerance")),
        damping_(params.number("damping")) {}

  std::string spec() const override { return spec_; }
  const Codec& codec() const override { return solver_->codec(); }
  bool needs_hessian() const override { return true; }
  double drift() const override { return solver_->drift(); }
  size_t scratch_bytes(int64_t n_out, int64_t n_in) const override {
    const size_t square = static_cast<size_t>(n_in * n_in) * sizeof(float);
    const size_t errors = static_cast<size_t>(n_out * n_in) * sizeof(float);
    return std::max(solver_->scratch_bytes(n_out, n_in),
                    square + Descent::scratch_bytes(n_in, codec().block_cols()) + errors +
                        refit_scratch_bytes(n_out, n_in));
  }

  Result<SolveReport> solve(const SolveInput& input, CodedMatrix& out) const override {
    QUERN_ASSIGN(SolveReport report, solver_->solve(input, out));
    if (input.hessian.data == nullptr || !(report.loss > 0)) return report;
    if (input.output_hessian.data != nullptr) {
      report.fallback = "no rounds of em: they know nothing of an output Hessian";
      return report;
    }
    const int64_t n_in = input.w.cols;
    Matrix<float> h(n_in, n_in);
    for (int64_t i = 0; i < n_in; ++i) {
      for (int64_t j = 0; j < n_in; ++j) h(i, j) = static_cast<float>(input.hessian(i, j));
    }
    const MatrixDescent descent(input.hessian, codec(), damping_);
    for (int64_t round = 0; round < rounds_; ++round) {
      const double last = report.loss;
      for (int i = 0; i < codec().linear_parts(); ++i) {
        keep_if_better(input, codec(), out, report.loss, [&] {
          refit(input.w, h.view(), kSteps, *codec().linear_part(i, out.mutable_view()));
        });
      }
      keep_if_better(input, codec(), out, report.loss, [&] { descent.run(input.w, sweeps_, out); });
      if (!(report.loss < last * (1 - tolerance_))) break;
    }
    return report;
  }

 private:
  std::string spec_;
  std::unique_ptr<Solver> solver_;
  int64_t rounds_, sweeps_;
  double tolerance_, damping_;
};

Result<std::unique_ptr<Solver>> make_em(const spec::Params& params) {
  spec::Call inner = params.call("solver");
  if (find_solver(inner.name) == nullptr) {
    QUERN_ASSIGN(const auto codec, make_codec(inner));
    spec::Value value;
    value.kind = spec::Value::Kind::kCall;
    QUERN_ASSIGN(value.call.emplace_back(), spec::parse_call(codec->spec()));
    inner = {"block_ldlq", {{"", std::move(value)}}};
  }
  QUERN_ASSIGN(auto solver, make_solver(inner));
  const Codec& codec = solver->codec();
  if (codec.linear_parts() == 0 || codec.decides_late()) {
    return usage_error("em: {} has no side info that could be refitted", codec.spec());
  }
  QUERN_ASSIGN(std::string text, params.text_around(solver->spec()));
  return std::make_unique<Em>(std::move(text), std::move(solver), params);
}

}  // namespace

extern const SolverInfo em_solver_info;
const SolverInfo em_solver_info = {
    .name = "em",
    .params = kParams,
    .summary = "codes and shared side info in turn (AQLM)",
    .make = make_em,
};

}  // namespace quern
