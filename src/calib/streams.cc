// SPDX-License-Identifier: Apache-2.0
#include "calib/streams.h"

#include <algorithm>

namespace quern {
namespace {

void copy_rows(const Matrix<float>& from, int64_t first, int64_t n, Matrix<float>& to) {
  if (to.rows() != n) to = Matrix<float>(n, from.cols());
  std::copy_n(from.row(first), n * from.cols(), to.data());
}

std::shared_ptr<const KvRecipe> exact_cache() {
  static const auto recipe = std::make_shared<const KvRecipe>(KvRecipe::plain(DType::kF32));
  return recipe;
}

}  // namespace

Matrix<float> SampleRuns::embed(const EndWeights& ends) const {
  Matrix<float> rows(corpus_.n_tokens(), model_.d_model);
  int64_t row = 0;
  for (const auto& sample : corpus_.samples) {
    const auto n = static_cast<int64_t>(sample.size());
    quern::embed(model_, ends, sample, 0, rows.view().row_range(row, n));
    row += n;
  }
  return rows;
}

void SampleRuns::run_sample(int layer, const LayerWeights& weights, MatrixView<float> h,
                            LayerTap* tap) const {
  const AttentionDesc& attention = model_.layers[static_cast<size_t>(layer)].attention;
  LayerKv kv({attention.n_kv_heads, attention.d_head}, h.rows, exact_cache());
  const SequenceRows rows{&kv, 0, h.rows, h.rows};
  forward_layer({&model_, &rope_, layer}, weights, {&rows, 1}, h, tap);
}

bool SampleRuns::advance(int layer, const LayerWeights& weights, Matrix<float>& rows,
                         const Proceed& proceed, LayerTap* tap) const {
  int64_t row = 0;
  for (const auto& sample : corpus_.samples) {
    if (!proceed()) return false;
    const auto n = static_cast<int64_t>(sample.size());
    run_sample(layer, weights, rows.view().row_range(row, n), tap);
    row += n;
  }
  return true;
}

bool SampleRuns::observe(int layer, const LayerWeights& weights, const Matrix<float>& rows,
                         LayerTap& tap, const Proceed& proceed) const {
  int64_t row = 0;
  Matrix<float> scratch;
  for (const auto& sample : corpus_.samples) {
    if (!proceed()) return false;
    const auto n = static_cast<int64_t>(sample.size());
    copy_rows(rows, row, n, scratch);
    run_sample(layer, weights, scratch.view(), &tap);
    row += n;
  }
  return true;
}

Streams::Streams(const ModelDesc& model, const Corpus& corpus, const EndWeights& source,
                 const EndWeights& coded)
    : model_(model),
      corpus_(corpus),
      runs_(model, corpus),
      source_(runs_.embed(source)),
      coded_(runs_.embed(coded)) {}

bool Streams::observe(int layer, const LayerWeights& weights, LayerTap& tap,
                      const std::function<bool()>& proceed) const {
  return runs_.observe(layer, weights, coded_, tap, proceed);
}

bool Streams::observe_source(int layer, const LayerWeights& weights, LayerTap& tap,
                             const std::function<bool()>& proceed) const {
  return runs_.observe(layer, weights, source_, tap, proceed);
}

bool Streams::observe_output(int layer, const LayerWeights& weights,
                             const std::function<void(MatrixView<const float>)>& visit,
                             const std::function<bool()>& proceed) const {
  int64_t row = 0;
  Matrix<float> scratch;
  for (const auto& sample : corpus_.samples) {
    if (!proceed()) return false;
    const auto n = static_cast<int64_t>(sample.size());
    copy_rows(source_, row, n, scratch);
    runs_.run_sample(layer, weights, scratch.view(), nullptr);
    visit(scratch.view());
    row += n;
  }
  return true;
}

bool Streams::observe_drift(int layer, const LayerWeights& source, const LayerWeights& weights,
                            Role role, GramTap& tap, const std::function<bool()>& proceed) const {
  int64_t row = 0;
  Matrix<float> scratch;
  for (const auto& sample : corpus_.samples) {
    if (!proceed()) return false;
    const auto n = static_cast<int64_t>(sample.size());
    InputTap inputs(role);
    copy_rows(source_, row, n, scratch);
    runs_.run_sample(layer, source, scratch.view(), &inputs);
    tap.expect(&inputs.rows());
    copy_rows(coded_, row, n, scratch);
    runs_.run_sample(layer, weights, scratch.view(), &tap);
    tap.expect(nullptr);
    row += n;
  }
  return true;
}

bool Streams::advance(int layer, const LayerWeights& source, const LayerWeights& coded,
                      const std::function<bool()>& proceed) {
  return runs_.advance(layer, source, source_, proceed) &&
         runs_.advance(layer, coded, coded_, proceed);
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
  finish_hidden(model_, ends, hidden.view());
  return hidden;
}

}  // namespace quern
