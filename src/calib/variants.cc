// SPDX-License-Identifier: Apache-2.0
#include "calib/variants.h"

#include <algorithm>

#include "base/check.h"
#include "eval/divergence.h"

namespace quern {

Variants::Variants(const ModelDesc& model, const Corpus& corpus, EndWeights ends)
    : model_(model), runs_(model, corpus) {
  original_ = {std::move(ends), {}, 0};
  original_.rows = runs_.embed(original_.ends);
}

void Variants::add_ends(EndWeights ends) {
  Matrix<float> rows = original_.next == 0 ? runs_.embed(ends) : original_.rows;
  copies_.push_back({std::move(ends), std::move(rows), original_.next});
}

bool Variants::add_layer(int layer, const LayerWeights& weights, const Proceed& proceed) {
  QUERN_CHECK(layer == original_.next);
  copies_.push_back({original_.ends, original_.rows, layer + 1});
  return runs_.advance(layer, weights, copies_.back().rows, proceed);
}

bool Variants::advance(int layer, const LayerWeights& weights, const Proceed& proceed) {
  const auto move = [&](Copy& copy) {
    if (copy.next > layer) return true;
    copy.next = layer + 1;
    return runs_.advance(layer, weights, copy.rows, proceed);
  };
  return std::all_of(copies_.begin(), copies_.end(), move) && move(original_);
}

Result<std::vector<double>> Variants::divergences(const Proceed& proceed) {
  const auto n_layers = static_cast<int>(model_.layers.size());
  const auto logits_of = [&](Copy& copy) -> LogitsOf {
    QUERN_CHECK(copy.next == n_layers);
    copy.next = n_layers + 1;
    finish_hidden(model_, copy.ends, copy.rows.view());
    return [&](int64_t row, MatrixView<float> logits) {
      head_logits(model_, copy.ends, copy.rows.view().row_range(row, logits.rows), logits);
    };
  };
  const LogitsOf original = logits_of(original_);
  std::vector<LogitsOf> others;
  others.reserve(copies_.size());
  for (Copy& copy : copies_) others.push_back(logits_of(copy));
  const int64_t n = original_.rows.rows();
  const auto divergent = divergences_from(original, others, n, model_.n_vocab, proceed);
  if (divergent.size() != others.size()) {
    return cancelled();
  }
  std::vector<double> means;
  means.reserve(divergent.size());
  for (const std::vector<double>& kl : divergent) means.push_back(mean_divergence(kl));
  return means;
}

}  // namespace quern
