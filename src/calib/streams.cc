// SPDX-License-Identifier: Apache-2.0
#include "calib/streams.h"

#include <algorithm>

namespace quern {

Streams::Streams(const ModelDesc& model, const BasisChange& basis, const Corpus& corpus,
                 const EndWeights& source, const EndWeights& coded)
    : model_(model),
      basis_(basis),
      corpus_(corpus),
      source_(corpus.n_tokens(), model.d_model),
      coded_(corpus.n_tokens(), model.d_model) {
  int64_t row = 0;
  for (const auto& sample : corpus.samples) {
    const auto n = static_cast<int64_t>(sample.size());
    embed(model, basis, source, sample, 0, source_.view().row_range(row, n));
    embed(model, basis, coded, sample, 0, coded_.view().row_range(row, n));
    row += n;
  }
}

bool Streams::run(int layer, const LayerWeights& weights, const Matrix<float>& from,
                  Matrix<float>* to, LayerTap* tap, const std::function<bool()>& proceed) const {
  const AttentionDesc& attention = model_.layers[static_cast<size_t>(layer)].attention;
  int64_t row = 0;
  Matrix<float> scratch;
  for (const auto& sample : corpus_.samples) {
    if (!proceed()) return false;
    const auto n = static_cast<int64_t>(sample.size());
    LayerKv kv({attention.n_kv_heads, attention.d_head}, n, DType::kF32);
    const SequenceRows rows{&kv, 0, n, n};
    MatrixView<float> h;
    if (to != nullptr) {
      h = to->view().row_range(row, n);
    } else {
      if (scratch.rows() != n) scratch = Matrix<float>(n, model_.d_model);
      h = scratch.view();
      std::copy_n(from.row(row), n * model_.d_model, h.data);
    }
    forward_layer({&model_, &basis_, layer}, weights, {&rows, 1}, h, tap);
    row += n;
  }
  return true;
}

bool Streams::observe(int layer, const LayerWeights& weights, LayerTap& tap,
                      const std::function<bool()>& proceed) const {
  return run(layer, weights, coded_, nullptr, &tap, proceed);
}

bool Streams::advance(int layer, const LayerWeights& source, const LayerWeights& coded,
                      const std::function<bool()>& proceed) {
  return run(layer, source, source_, &source_, nullptr, proceed) &&
         run(layer, coded, coded_, &coded_, nullptr, proceed);
}

double Streams::relative_error() const {
  double difference = 0, energy = 0;
  const int64_t n = source_.rows() * source_.cols();
  for (int64_t i = 0; i < n; ++i) {
    const double x = source_.data()[i];
    const double d = coded_.data()[i] - x;
    difference += d * d;
    energy += x * x;
  }
  return energy > 0 ? difference / energy : 0;
}

Matrix<float> Streams::final_hidden(const EndWeights& ends) const {
  Matrix<float> hidden = coded_;
  finish_hidden(model_, basis_, ends, hidden.view());
  return hidden;
}

}  // namespace quern
