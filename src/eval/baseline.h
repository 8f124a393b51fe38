// SPDX-License-Identifier: Apache-2.0
// What a model said of every scored position of a text, small enough to keep: its k likeliest
// tokens with their probabilities, the mass of the rest, and a few tokens drawn from the rest.
// Divergence from the model is then measured without it.
//
// Of one position let p be the base and q the model, S the k likeliest tokens of p, and p_T, q_T
// the masses outside S (q is known whole). Then, as sums of x log(x/y) - x + y, which is never
// negative,
//
//   KL(p || q) = sum over S + [p_T log(p_T / q_T) - p_T + q_T]  +  p_T KL(p|T || q|T)
//                \________________ kl_least ________________/
//
// kl_least, where the rest counts as one token, never exceeds KL: the log sum inequality. The last
// term is p_T E[log p - log q] over tokens drawn from p|T, with p_T log(p_T / q_T) taken away. So
// with the mean over m independent draws in the place of E
//
//   kl = sum over S + p_T mean(log p_j - log q_j) - p_T + q_T
//
// is KL on average, exactly; what the draws add to the variance of a mean over positions is known
// from their spread: tail_variance = p_T^2 s^2 / m. With k = n_vocab nothing is drawn.
//
// A file is safetensors with the metadata format "quern-baseline" and, of n positions,
//   tokens  U16 (U32 above 65536 tokens)  [n, k]   from the likeliest down
//   logs    F16  [n, k]      log p
//   tail    F32  [n]         p_T
//   drawn, drawn_logs        likewise  [n, m]
//   nll     F32  [n]         of the text's token
// Halves keep log p to 5e-4 of itself. In sums of the form above that is a second-order error in S,
// and of drawn tokens one that averages out.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "formats/safetensors.h"
#include "tensor/matrix.h"

namespace quern {

// What was measured; two measurements are of the same when all of it is equal.
struct BaselineText {
  std::string digest;  // of all tokens fed and scored
  std::string protocol;
  int64_t n_ctx = 0, n_windows = 0, n_positions = 0;
};

class BaselineWriter {
 public:
  // k: likeliest tokens, 1..n_vocab; n_drawn: of the rest, 2 or more.
  BaselineWriter(int64_t k, int64_t n_drawn) : k_(k), n_drawn_(n_drawn) {}

  // The next positions: logits [n, n_vocab] and the text's tokens.
  void add(const Matrix<float>& logits, std::span<const int32_t> target);

  // Appears whole or not at all. `model`: digest of what gave the logits; `name`: words for people.
  Status write(const std::string& path, const BaselineText& text, const std::string& model,
               const std::string& name) const;

 private:
  int64_t k_, n_drawn_, n_vocab_ = 0, n_ = 0;
  std::vector<uint32_t> tokens_, drawn_;     // [n, k], [n, m]
  std::vector<uint16_t> logs_, drawn_logs_;  // halves
  std::vector<float> tail_, nll_;            // [n]
};

struct BaselineDivergence {
  double kl = 0, kl_least = 0, tail_variance = 0;
  bool is_same_top = false;
};

class Baseline {
 public:
  static Result<Baseline> open(const std::string& path);
  // A whole file image, which must outlive the object. Every number is checked.
  static Result<Baseline> parse(std::span<const std::byte> image);

  const BaselineText& text() const { return text_; }
  const std::string& model() const { return model_; }  // digest
  const std::string& name() const { return name_; }
  int64_t n_vocab() const { return n_vocab_; }
  int64_t n_positions() const { return text_.n_positions; }
  int64_t k() const { return k_; }
  int64_t n_drawn() const { return n_drawn_; }
  double nll() const;  // mean, of the base

  // Of a position, from the model's logits [n_vocab].
  BaselineDivergence compare(int64_t position, std::span<const float> logits) const;

 private:
  uint32_t token(const std::byte* tokens, int64_t i) const;
  Status check_rows() const;
  Status check_row(int64_t position, std::vector<char>& is_top) const;

  std::shared_ptr<const MappedFile> file_;  // null for an image
  BaselineText text_;
  std::string model_, name_;
  int64_t n_vocab_ = 0, k_ = 0, n_drawn_ = 0;
  bool is_wide_ = false;  // U32
  const std::byte *tokens_ = nullptr, *logs_ = nullptr, *tail_ = nullptr, *drawn_ = nullptr,
                  *drawn_logs_ = nullptr, *nll_ = nullptr;
};

}  // namespace quern
