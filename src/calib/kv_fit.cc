// SPDX-License-Identifier: Apache-2.0
#include "calib/kv_fit.h"

#include <algorithm>

#include "model/model.h"
#include "model/rope.h"

namespace quern {
namespace {

// Keys and values of one layer, sample behind sample without their first positions, and the mean
// squares of what queries multiply keys by.
class HeadTap final : public LayerTap {
 public:
  HeadTap(const AttentionDesc& attention, int64_t n_rows)
      : attention_(attention), squares_(static_cast<size_t>(width())) {
    for (Matrix<float>* x : {&keys_, &values_}) *x = Matrix<float>(n_rows, width());
  }

  bool input(Role /*role*/, int /*expert*/, MatrixView<const float> /*x*/) override { return true; }
  bool heads(MatrixView<const float> q, MatrixView<const float> k,
             MatrixView<const float> v) override {
    for (int64_t i = n_skipped_; i < k.rows; ++i, ++n_) {
      std::copy_n(k.row(i), width(), keys_.row(n_));
      std::copy_n(v.row(i), width(), values_.row(n_));
    }
    const int64_t d = attention_.d_head, group = attention_.n_heads / attention_.n_kv_heads;
    for (int64_t i = n_skipped_; i < q.rows; ++i) {
      for (int64_t j = 0; j < q.cols; ++j) {
        const double x = q.row(i)[j];
        squares_[static_cast<size_t>(j / d / group * d + j % d)] += x * x;
      }
    }
    return true;
  }
  void skip(int64_t n) { n_skipped_ = n; }

  KvFitRows rows(KvSide side) {
    const bool is_keys = side == KvSide::kKeys;
    weights_.assign(static_cast<size_t>(width()), 1.0);
    if (is_keys) weigh();
    const Matrix<float>& x = is_keys ? keys_ : values_;
    return {side, attention_.n_kv_heads, attention_.d_head, x.view().row_range(0, n_), weights_};
  }

 private:
  int64_t width() const { return attention_.n_kv_heads * attention_.d_head; }

  // An error of a channel of keys shows in scores as the query's number there; RoPE shares it out
  // between the two of a pair.
  void weigh() {
    weights_ = squares_;
    const int64_t half = attention_.rope.n_dims / 2;
    for (int64_t head = 0; head < attention_.n_kv_heads; ++head) {
      for (int64_t j = 0; j < half; ++j) {
        const auto a = static_cast<size_t>(head * attention_.d_head + j);
        const auto b = a + static_cast<size_t>(half);
        weights_[a] = weights_[b] = (squares_[a] + squares_[b]) / 2;
      }
    }
  }

  const AttentionDesc& attention_;
  Matrix<float> keys_, values_;
  std::vector<double> squares_, weights_;
  int64_t n_ = 0, n_skipped_ = 0;
};

Status fit_layer(size_t layer, HeadTap& tap, const KvRecipe& recipe, KvTableSet& set) {
  if (!recipe.has_tables()) return {};
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    const KvCodec& codec = side == KvSide::kKeys ? *recipe.keys : *recipe.values;
    if (codec.tables() != KvTables::kOfModel) continue;
    QUERN_ASSIGN(std::vector<float> tables, codec.fit(tap.rows(side)));
    set.put(layer, side, codec, std::move(tables));
  }
  return {};
}

}  // namespace

Result<KvTableSet> fit_kv_tables(const ModelFiles& files, const Corpus& corpus,
                                 std::span<const KvCacheRecipe> recipes,
                                 const std::function<bool(double)>& proceed) {
  const ModelDesc& model = files.desc();
  int64_t n_sinks = 0;
  for (const KvCacheRecipe& recipe : recipes) {
    QUERN_TRY(recipe.check(model));
    if (!recipe.has_tables()) return usage_error("{} has no tables", recipe.text);
    for (const auto& kept : recipe.all()) n_sinks = std::max(n_sinks, kept->sinks);
  }
  QUERN_ASSIGN(const EndWeights ends, files.ends());
  std::vector<Matrix<float>> streams;
  for (const std::vector<Token>& sample : corpus.samples) {
    streams.emplace_back(static_cast<int64_t>(sample.size()), model.d_model);
    embed(model, ends, sample, 0, streams.back().view());
  }
  KvTableSet set;
  set.model = files.digest();
  const auto plain = std::make_shared<const KvRecipe>(KvRecipe::plain(DType::kF32));
  RopeTables rope;
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const AttentionDesc& attention = model.layers[i].attention;
    QUERN_ASSIGN(const LayerWeights weights, files.layer(static_cast<int>(i)));
    HeadTap tap(attention, corpus.n_tokens());
    tap.skip(n_sinks);
    for (size_t s = 0; s < streams.size(); ++s) {
      const auto done = static_cast<double>(i * streams.size() + s);
      const auto all = static_cast<double>(model.layers.size() * streams.size());
      if (!proceed(done / all)) return error("cancelled");
      const MatrixView<float> h = streams[s].view();
      LayerKv kv({attention.n_kv_heads, attention.d_head}, h.rows, plain);
      const SequenceRows rows{&kv, 0, h.rows, h.rows};
      forward_layer({&model, &rope, static_cast<int>(i)}, weights, {&rows, 1}, h, &tap);
    }
    for (const KvCacheRecipe& recipe : recipes) QUERN_TRY(fit_layer(i, tap, *recipe.of(i), set));
  }
  return set;
}

}  // namespace quern
