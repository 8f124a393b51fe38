// SPDX-License-Identifier: Apache-2.0
#include "calib/kv_fit.h"

#include <algorithm>
#include <vector>

#include "calib/gradients.h"
#include "calib/streams.h"
#include "model/model.h"

namespace quern {
namespace {

// Numbers of one layer's keys and values, sample behind sample.
class HeadRows {
 public:
  explicit HeadRows(int64_t n_rows) : n_rows_(n_rows) {}

  // Rows of a sample, without the first.
  void add(const KeysAndValues& sample, int64_t n_skipped) {
    width_ = sample.k.cols;
    for (std::vector<float>* all : {&keys_, &values_}) {
      all->reserve(static_cast<size_t>(n_rows_ * width_));
    }
    for (int64_t i = n_skipped; i < sample.k.rows; ++i) {
      keys_.insert(keys_.end(), sample.k.row(i), sample.k.row(i) + width_);
      values_.insert(values_.end(), sample.v.row(i), sample.v.row(i) + width_);
    }
  }
  void square() {
    for (std::vector<float>* all : {&keys_, &values_}) {
      for (float& x : *all) x *= x;
    }
  }
  void clear() {
    keys_.clear();
    values_.clear();
  }
  KeysAndValues view() const { return {of(keys_), of(values_)}; }

 private:
  MatrixView<const float> of(const std::vector<float>& rows) const {
    return {rows.data(), static_cast<int64_t>(rows.size()) / std::max<int64_t>(1, width_), width_};
  }
  std::vector<float> keys_, values_;
  int64_t n_rows_;  // at most
  int64_t width_ = 0;
};

// The tables of all codecs of `recipes`, one layer after another.
class TableFit {
 public:
  TableFit(const ModelFiles& files, std::span<const KvCacheRecipe> recipes)
      : model_(files.desc()), recipes_(recipes) {
    set_.model = files.digest();
    for (const KvCacheRecipe& recipe : recipes) {
      for (const auto& kept : recipe.all()) n_sinks_ = std::max(n_sinks_, kept->sinks);
    }
  }

  const ModelDesc& model() const { return model_; }
  const AttentionDesc& attention(int layer) const {
    return model_.layers[static_cast<size_t>(layer)].attention;
  }
  int64_t n_sinks() const { return n_sinks_; }
  KvTableSet take() { return std::move(set_); }

  Status fit(int layer, const KeysAndValues& x, const KeysAndValues& weights) {
    const AttentionDesc& a = attention(layer);
    for (const KvCacheRecipe& all : recipes_) {
      const KvRecipe& recipe = *all.of(static_cast<size_t>(layer));
      if (!recipe.has_tables()) continue;
      for (const KvFitRows& rows :
           {KvFitRows{KvSide::kKeys, a.n_kv_heads, a.d_head, x.k, weights.k},
            KvFitRows{KvSide::kValues, a.n_kv_heads, a.d_head, x.v, weights.v}}) {
        const KvCodec& codec = rows.side == KvSide::kKeys ? *recipe.keys : *recipe.values;
        if (codec.tables() != KvTables::kOfModel) continue;
        QUERN_ASSIGN(std::vector<float> tables, codec.fit(rows));
        set_.put(static_cast<size_t>(layer), rows.side, codec, std::move(tables));
      }
    }
    return {};
  }

 private:
  const ModelDesc& model_;
  std::span<const KvCacheRecipe> recipes_;
  int64_t n_sinks_ = 0;
  KvTableSet set_;
};

// Weighs by squared gradients; layers come from the last to the first.
class GradientFit final : public GradientVisitor {
 public:
  GradientFit(TableFit& tables, int64_t n_tokens)
      : tables_(tables), heads_(n_tokens), weights_(n_tokens) {}

  void linear(const WeightId& /*id*/, MatrixView<const float> /*x*/,
              MatrixView<const float> /*dy*/) override {}
  void heads(int /*layer*/, const KeysAndValues& x, const KeysAndValues& dx) override {
    heads_.add(x, tables_.n_sinks());
    weights_.add(dx, tables_.n_sinks());
  }
  Status end_layer(int layer) override {
    if (layer < 0 || layer == static_cast<int>(tables_.model().layers.size())) return {};
    weights_.square();
    QUERN_TRY(tables_.fit(layer, heads_.view(), weights_.view()));
    heads_.clear();
    weights_.clear();
    return {};
  }

 private:
  TableFit& tables_;
  HeadRows heads_, weights_;
};

// Weighs the channels of one layer's keys by what queries multiply them by.
class QueryTap final : public LayerTap {
 public:
  QueryTap(const AttentionDesc& attention, int64_t n_skipped, int64_t n_tokens)
      : attention_(attention),
        n_skipped_(n_skipped),
        squares_(static_cast<size_t>(attention.n_kv_heads * attention.d_head)),
        heads_(n_tokens) {}

  bool input(Role /*role*/, int /*expert*/, MatrixView<const float> /*x*/) override { return true; }
  bool heads(MatrixView<const float> q, MatrixView<const float> k,
             MatrixView<const float> v) override {
    heads_.add({k, v}, n_skipped_);
    const int64_t d = attention_.d_head, group = attention_.n_heads / attention_.n_kv_heads;
    for (int64_t i = n_skipped_; i < q.rows; ++i) {
      for (int64_t j = 0; j < q.cols; ++j) {
        const double x = q.row(i)[j];
        squares_[static_cast<size_t>(j / d / group * d + j % d)] += x * x;
      }
    }
    return true;
  }

  Status fit(int layer, TableFit& tables) const {
    const KeysAndValues x = heads_.view();
    const std::vector<double> of_channels = channel_weights();
    Matrix<float> weights(x.k.rows, x.k.cols);
    for (int64_t i = 0; i < weights.rows(); ++i) {
      std::copy(of_channels.begin(), of_channels.end(), weights.row(i));
    }
    return tables.fit(layer, x, {weights.view(), {}});
  }

 private:
  // An error of a channel of keys shows in scores as the query's number there; RoPE shares it out
  // between the two of a pair.
  std::vector<double> channel_weights() const {
    std::vector<double> weights = squares_;
    const int64_t half = attention_.rope.n_dims / 2;
    for (int64_t head = 0; head < attention_.n_kv_heads; ++head) {
      for (int64_t j = 0; j < half; ++j) {
        const auto a = static_cast<size_t>(head * attention_.d_head + j);
        const auto b = a + static_cast<size_t>(half);
        weights[a] = weights[b] = (squares_[a] + squares_[b]) / 2;
      }
    }
    return weights;
  }

  const AttentionDesc& attention_;
  int64_t n_skipped_;
  std::vector<double> squares_;  // of queries, summed, [n_kv_heads * d_head]
  HeadRows heads_;
};

Status fit_by_gradients(const ModelFiles& files, const Corpus& corpus, const KvFitOptions& options,
                        TableFit& tables) {
  QUERN_ASSIGN(const EndWeights ends, files.ends());
  GradientFit visitor(tables, corpus.n_tokens());
  GradientOptions gradients;
  gradients.seed = options.seed;
  gradients.proceed = options.proceed;
  const auto load = [&](int layer) { return files.layer(layer); };
  return visit_gradients(files.desc(), ends, load, corpus, gradients, visitor);
}

Status fit_by_queries(const ModelFiles& files, const Corpus& corpus, const KvFitOptions& options,
                      TableFit& tables) {
  const ModelDesc& model = files.desc();
  QUERN_ASSIGN(const EndWeights ends, files.ends());
  const SampleRuns runs(model, corpus);
  Matrix<float> rows = runs.embed(ends);
  const int n_layers = static_cast<int>(model.layers.size());
  const double n_runs = static_cast<double>(n_layers) * static_cast<double>(corpus.samples.size());
  int64_t n_done = 0;
  for (int layer = 0; layer < n_layers; ++layer) {
    QUERN_ASSIGN(const LayerWeights weights, files.layer(layer));
    QueryTap tap(tables.attention(layer), tables.n_sinks(), corpus.n_tokens());
    const auto proceed = [&] { return options.proceed(static_cast<double>(n_done++) / n_runs); };
    if (!runs.advance(layer, weights, rows, proceed, &tap)) return cancelled();
    QUERN_TRY(tap.fit(layer, tables));
  }
  return {};
}

}  // namespace

Result<KvTableSet> fit_kv_tables(const ModelFiles& files, const Corpus& corpus,
                                 std::span<const KvCacheRecipe> recipes,
                                 const KvFitOptions& options) {
  for (const KvCacheRecipe& recipe : recipes) {
    QUERN_TRY(recipe.check(files.desc()));
    if (!recipe.has_tables()) return usage_error("{} has no tables", recipe.text);
  }
  TableFit tables(files, recipes);
  const bool has_gradients = options.weighing == KvWeighing::kGradients;
  QUERN_TRY((has_gradients ? fit_by_gradients : fit_by_queries)(files, corpus, options, tables));
  return tables.take();
}

}  // namespace quern
