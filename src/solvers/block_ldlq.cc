// SPDX-License-Identifier: Apache-2.0
// block_ldlq: ldlq for codecs that code several columns together. Blocks of g = block_cols()
// columns are coded one after another, and each first takes up what the blocks before it did wrong.
//
// Definition (feedback.h): H = M D M^T, L = M with its diagonal blocks B divided out on the right;
//     w_hat_k = nearest( w_k + sum_{i<k} E_i L_ik )   for blocks k in order.
// The division is the exact g x g solve; published code of GPTVQ divides by the diagonal alone. At
// g = 1 this is ldlq. "Nearest" is meant in the metric S_k = B_k D_k B_k^T of the block where the
// codec can, and plain otherwise.
//
// Order, damping and groups are those of ldlq; order=act keeps the columns of a block together. A
// last block of fewer columns is the codec's to pad. Then `descent` sweeps code every block again
// (descent.h).
//
// Cost: as ldlq; a sweep adds n_out n_in^2 in float and codes all blocks again.
// References: QuIP# arXiv 2402.04396 section 4; GPTVQ arXiv 2402.15319.
#include <algorithm>
#include <vector>

#include "kernels/kernels.h"
#include "solvers/descent.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    kFeedbackCodec,
    kFeedbackOrder,
    kFeedbackDamping,
    kFeedbackGroups,
    kFeedbackDrift,
    {"descent", spec::ParamKind::kInt, "0", 0, 100, {}, "sweeps that code each block again"},
};

class BlockLdlq final : public Solver {
 public:
  BlockLdlq(std::string text, std::unique_ptr<Codec> codec, const FeedbackOptions& options,
            int64_t sweeps)
      : spec_(std::move(text)), codec_(std::move(codec)), options_(options), sweeps_(sweeps) {}

  std::string spec() const override { return spec_; }
  const Codec& codec() const override { return *codec_; }
  bool needs_hessian() const override { return true; }
  double drift() const override { return options_.drift; }
  size_t scratch_bytes(int64_t n_out, int64_t n_in) const override {
    const size_t descent = sweeps_ > 0 ? Descent::scratch_bytes(n_in, options_.block) : 0;
    return feedback_scratch_bytes(options_, n_out, n_in) + descent;
  }

  Result<SolveReport> solve(const SolveInput& input, CodedMatrix& out) const override {
    SolveReport report;
    QUERN_ASSIGN(const Feedback feedback, factor_feedback(input, options_, report));
    std::unique_ptr<const Descent> descent;
    CodedMatrix trial;
    if (sweeps_ > 0 && report.fallback.empty()) {
      descent = std::make_unique<Descent>(input.hessian, feedback);
    }
    const auto code_tile = [&](const FeedbackTile& tile) {
      code_blocks(tile);
      if (descent != nullptr) descent->run(tile, sweeps_, trial);
    };
    code_with_feedback(input, *codec_, feedback, out, report, code_tile,
                       descent != nullptr ? &trial : nullptr);
    return report;
  }

 private:
  // Codes all blocks of a tile, one after another.
  void code_blocks(const FeedbackTile& tile) const {
    const auto& [codec, feedback, w, first, n, codes, error] = tile;
    const int64_t group = codec.group_cols(w.cols);
    const Matrix<float>& l = feedback.l_transposed;
    if (options_.is_static) fit_static(tile);
    Matrix<float> target(n, options_.block), w_hat(n, options_.block);
    Matrix<float> past(n, feedback.chunk_width());    // feedback of what lies before the chunk
    Matrix<float> recent(feedback.chunk_width(), n);  // errors of the chunk, a column per row
    std::vector<float> column(static_cast<size_t>(n));
    for (int64_t chunk = 0, end = 0; chunk < w.cols; chunk = end) {
      end = feedback.chunk_end(chunk);
      kernels().dot_tile(error.row(first), error.stride, n, l.row(chunk), w.cols, end - chunk,
                         chunk, past.data(), past.cols());
      for (int64_t b = chunk, width = 0; b < end; b += width) {
        width = feedback.block_end(b) - b;
        const int64_t col = feedback.order[static_cast<size_t>(b)];
        for (int64_t c = 0; c < width; ++c) {
          for (int64_t i = 0; i < n; ++i) {
            column[static_cast<size_t>(i)] = w(first + i, col + c) + past(i, b - chunk + c);
          }
          for (int64_t r = chunk; r < b; ++r) {
            kernels().axpy(l(b + c, r), recent.row(r - chunk), n, column.data());
          }
          for (int64_t i = 0; i < n; ++i) target(i, c) = column[static_cast<size_t>(i)];
        }
        if (!options_.is_static && col % group == 0) fit_corrected(tile, col);
        codec.encode_block(target.view().col_range(0, width), feedback.metric_of(b), first, col,
                           codes, w_hat.view().col_range(0, width));
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t c = 0; c < width; ++c) {
            error(first + i, b + c) = w(first + i, col + c) - w_hat(i, c);
            recent(b - chunk + c, i) = error(first + i, b + c);
          }
        }
      }
    }
  }

  std::string spec_;
  std::unique_ptr<Codec> codec_;
  FeedbackOptions options_;
  int64_t sweeps_;
};

Result<std::unique_ptr<Solver>> make_block_ldlq(const spec::Params& params) {
  QUERN_ASSIGN(auto codec, make_codec(params.call("codec")));
  if (codec->decides_late()) {
    return usage_error("block_ldlq: {} decides late, column by column; use ldlq", codec->spec());
  }
  QUERN_ASSIGN(const FeedbackOptions options, read_feedback_options("block_ldlq", params, *codec));
  QUERN_ASSIGN(std::string text, params.text_around(codec->spec()));
  return std::make_unique<BlockLdlq>(std::move(text), std::move(codec), options,
                                     params.integer("descent"));
}

}  // namespace

extern const SolverInfo block_ldlq_solver_info;
const SolverInfo block_ldlq_solver_info = {
    .name = "block_ldlq",
    .params = kParams,
    .summary = "block by block with error feedback, for codecs of several columns",
    .make = make_block_ldlq,
};

}  // namespace quern
