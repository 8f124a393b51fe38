// SPDX-License-Identifier: Apache-2.0
// What the solvers with error feedback share: the factor of the damped Hessian, the order of the
// columns, the fit of a group from corrected weights, and the report.
//
// With H = M D M^T, M unit upper triangular, and blocks of g columns, let B be the diagonal blocks
// of M, and L = M B^-1. Then L has identities for diagonal blocks and
//     tr(E H E^T) = sum_k |eta_k|^2 in the metric B_k D_k B_k^T,   eta_k = E_k + sum_{i<k} E_i L_ik
// over blocks k, so the target of block k is W_k + sum_{i<k} E_i L_ik. This is GPTQ's update of g
// columns at once with the exact g x g triangular solve; the solve is done here, once a matrix.
//
// Two-sided (YAQA, arXiv 2505.22988). With an output Hessian H_O = M_O D_O M_O^T as well, the
// target of a block is W + B^T E + E A + B^T E A with A = L - I, B = L_O - I over the blocks coded
// so far. For strips of rows coded one after another that is feedback over columns as ever, from
// weights W + B^T E in place of W: (W + B^T E) + (E + B^T E) A, where E + B^T E is what W_hat lacks
// of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "solvers/solver.h"

namespace quern {

inline constexpr spec::ParamSpec kFeedbackCodec = {"codec", spec::ParamKind::kCall, "", 0, 0,
                                                   {},      "what to code with"};
inline constexpr spec::ParamSpec kFeedbackOrder = {
    "order", spec::ParamKind::kChoice, "natural", 0, 0, "natural|act", "order of the columns"};
inline constexpr spec::ParamSpec kFeedbackDamping = {
    "damping", spec::ParamKind::kNumber, "0.01", 0, 100, {}, "share of mean(diag H) added to it"};
inline constexpr spec::ParamSpec kFeedbackGroups = {"groups",
                                                    spec::ParamKind::kChoice,
                                                    "auto",
                                                    0,
                                                    0,
                                                    "auto|dynamic|static",
                                                    "when side info is fitted"};

inline constexpr spec::ParamSpec kFeedbackDrift = {
    "drift", spec::ParamKind::kNumber, "0", 0, 1, {}, "share of the inputs' drift to make up for"};

enum class ColumnOrder : uint8_t { kNatural, kAct };  // as they lie; by falling mean of diag H

struct FeedbackOptions {
  std::string_view solver;  // for messages
  ColumnOrder order = ColumnOrder::kNatural;
  bool is_static = false;  // side info is fitted from W beforehand
  double damping = 0.01;
  double drift = 0;
  int64_t block = 1;   // g
  int64_t strip = 16;  // rows that take no feedback from each other
};

// The options `order`, `groups` and `damping` of a call, or why they do not go together.
Result<FeedbackOptions> read_feedback_options(std::string_view solver, const spec::Params& params,
                                              const Codec& codec);

// Rows and columns in coding order.
struct Feedback {
  Matrix<float> l_transposed;               // [n_in, n_in] row j holds L_ij for i < j
  std::vector<float> d;                     // D / mean(D)
  Matrix<float> metric;                     // [n_in, g] row j: of S_k = B_k D_k B_k^T, its block
  float power = 0;                          // mean over j of sum_{i<j} L_ij^2
  double lambda = 0;                        // what was added to the diagonal of H
  std::vector<int64_t> order;               // coding order -> column
  int64_t block = 1;                        // g
  std::shared_ptr<const Feedback> outputs;  // the same for H_O, a block a strip; null: identity

  MatrixView<const float> metric_of(int64_t begin) const {
    const int64_t width = block_end(begin) - begin;
    return metric.view().row_range(begin, width).col_range(0, width);
  }
  // The end of the block that starts at place `begin` of the coding order.
  int64_t block_end(int64_t begin) const {
    const auto n = static_cast<int64_t>(order.size());
    return begin + std::min(block, n - order[static_cast<size_t>(begin)]);
  }
  // The end of a chunk from `begin` on: whole blocks of 64 columns in all, or one block. What comes
  // from before a chunk is one product. chunk_width() bounds the width of all chunks.
  int64_t chunk_end(int64_t begin) const {
    int64_t end = block_end(begin);
    while (end < static_cast<int64_t>(order.size()) && block_end(end) - begin <= kChunk) {
      end = block_end(end);
    }
    return end;
  }
  int64_t chunk_width() const { return std::max(kChunk, block); }
  static constexpr int64_t kChunk = 64;
};

// Rows [first, first + n) while they are coded. Places are in coding order, columns as they lie.
struct FeedbackTile {
  const Codec& codec;
  const Feedback& feedback;
  MatrixView<const float> w;
  int64_t first, n;
  const MutableCodes& codes;
  MatrixView<float> error;  // [n_out, n_in] W - W_hat by place
};

// Factors the damped Hessian; what went wrong on the way is in `report`.
Result<Feedback> factor_feedback(const SolveInput& input, const FeedbackOptions& options,
                                 SolveReport& report);

// Lets `code_tile` code tiles of rows and fill in their errors, from many threads; weighs these.
// `trial`, if given, becomes a copy of the codes as they are before the first tile.
void code_with_feedback(const SolveInput& input, const Codec& codec, const Feedback& feedback,
                        CodedMatrix& out, SolveReport& report,
                        const std::function<void(const FeedbackTile&)>& code_tile,
                        CodedMatrix* trial = nullptr);
size_t feedback_scratch_bytes(const FeedbackOptions& options, int64_t n_out, int64_t n_in);

// Fits all groups of the tile from W.
void fit_static(const FeedbackTile& tile);

// Fits the group that starts at column `col` (natural order) from the weights as the columns coded
// so far would have them corrected: with Q the coded columns and G the group,
// W_G + (E_Q L_QG) L_GG^-1, which is what GPTQ's updated W holds there.
void fit_corrected(const FeedbackTile& tile, int64_t col);

}  // namespace quern
