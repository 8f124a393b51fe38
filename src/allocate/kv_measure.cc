// SPDX-License-Identifier: Apache-2.0
#include "allocate/kv_measure.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "calib/streams.h"
#include "eval/divergence.h"
#include "model/rope.h"

namespace quern {
namespace {

// What attention gives, kept or compared with what was kept. Ends the layer where nothing behind it
// is wanted.
class AttentionTap final : public LayerTap {
 public:
  explicit AttentionTap(Matrix<float>& kept) : kept_(kept) {}

  void begin(int64_t row, bool keeps, bool goes_on) {
    row_ = row;
    keeps_ = keeps;
    goes_on_ = goes_on;
  }
  bool input(Role role, int /*expert*/, MatrixView<const float> x) override {
    if (role != Role::kO) return true;
    if (kept_.cols() != x.cols) kept_ = Matrix<float>(kept_.rows(), x.cols);
    for (int64_t i = 0; i < x.rows; ++i) {
      float* row = kept_.row(row_ + i);
      if (keeps_) {
        std::copy_n(x.row(i), x.cols, row);
        continue;
      }
      for (int64_t j = 0; j < x.cols; ++j) {
        const double was = row[j], difference = x.row(i)[j] - was;
        error_ += difference * difference;
        energy_ += was * was;
      }
    }
    return goes_on_;
  }
  // Of all since the last call.
  double take_loss() {
    const double loss = energy_ > 0 ? error_ / energy_ : 0;
    error_ = energy_ = 0;
    return loss;
  }

 private:
  Matrix<float>& kept_;  // [n_tokens, n_heads * d_head]
  int64_t row_ = 0;
  bool keeps_ = false, goes_on_ = false;
  double error_ = 0, energy_ = 0;
};

class KvMeasurement {
 public:
  KvMeasurement(const Model& model, const Corpus& corpus, std::span<const KvVariant> variants,
                const std::function<bool(double)>& proceed)
      : model_(model),
        corpus_(corpus),
        variants_(variants),
        proceed_(proceed),
        costs_(variants.size()),
        rows_(variants.size()),
        attention_(corpus.n_tokens(), 0),
        tap_(attention_) {
    for (const auto& sample : corpus.samples) {
      longest_ = std::max(longest_, static_cast<int64_t>(sample.size()));
    }
  }

  Result<std::vector<KvVariantCost>> run() {
    for (const auto& sample : corpus_.samples) QUERN_TRY(check_ids(model_.desc(), sample));
    clean_ = SampleRuns(model_.desc(), corpus_).embed(model_.parts().ends);
    for (size_t layer = 0; layer < model_.desc().layers.size(); ++layer) {
      QUERN_TRY(measure_layer(layer));
    }
    QUERN_TRY(compare());
    return costs_;
  }

 private:
  Status measure_layer(size_t layer) {
    for (size_t v = 0; v < variants_.size(); ++v) {
      if (!rows_[v].empty()) QUERN_TRY(advance(layer, halves_, rows_[v]));
    }
    const Matrix<float> before = clean_;
    QUERN_TRY(advance(layer, halves_, clean_, Look::kKeep));
    for (size_t v = 0; v < variants_.size(); ++v) {
      const KvVariant& variant = variants_[v];
      if (variant.layer != layer) continue;
      Matrix<float> rows = before;
      tap_.take_loss();
      QUERN_TRY(advance(layer, variant.kept, rows,
                        variant.is_probe ? Look::kCompare : Look::kCompareAndEnd));
      costs_[v].loss = tap_.take_loss();
      if (!std::isfinite(costs_[v].loss)) {
        return error("layer {}: attention is not finite over {}", layer, variant.kept.text);
      }
      if (variant.is_probe) rows_[v] = std::move(rows);
      caches_.erase(variant.kept.text);
    }
    return {};
  }

  enum class Look : uint8_t { kAway, kKeep, kCompare, kCompareAndEnd };

  // Moves the rows of all samples through a layer whose cache is kept so.
  Status advance(size_t layer, const KvRecipe& kept, Matrix<float>& rows, Look look = Look::kAway) {
    auto found = caches_.find(kept.text);
    if (found == caches_.end()) {
      QUERN_ASSIGN(KvCache cache, model_.make_cache(longest_, kept));
      found = caches_.emplace(kept.text, std::move(cache)).first;
    }
    LayerKv& kv = found->second.layer(layer);
    int64_t row = 0;
    for (const auto& sample : corpus_.samples) {
      const auto n_layers = static_cast<double>(model_.desc().layers.size());
      if (!proceed_((static_cast<double>(layer) + .5) / (n_layers + 1))) return cancelled();
      const auto n = static_cast<int64_t>(sample.size());
      kv.truncate(0);
      const SequenceRows sequence{&kv, 0, n, longest_};
      tap_.begin(row, look == Look::kKeep, look != Look::kCompareAndEnd);
      forward_layer({&model_.desc(), &rope_, static_cast<int>(layer)}, model_.parts().layers[layer],
                    {&sequence, 1}, rows.view().row_range(row, n),
                    look == Look::kAway ? nullptr : &tap_);
      row += n;
    }
    return {};
  }

  // The divergence of every probe, a few positions at a time.
  Status compare() {
    const ModelDesc& desc = model_.desc();
    const EndWeights& ends = model_.parts().ends;
    finish_hidden(desc, ends, clean_.view());
    for (Matrix<float>& rows : rows_) {
      if (!rows.empty()) finish_hidden(desc, ends, rows.view());
    }
    const auto logits_of = [this](const Matrix<float>& rows) -> LogitsOf {
      return [this, &rows](int64_t row, MatrixView<float> logits) {
        model_.logits(rows.view().row_range(row, logits.rows), logits);
      };
    };
    std::vector<size_t> probes;
    std::vector<LogitsOf> others;
    for (size_t v = 0; v < variants_.size(); ++v) {
      if (rows_[v].empty()) continue;
      probes.push_back(v);
      others.push_back(logits_of(rows_[v]));
    }
    const auto divergent = divergences_from(logits_of(clean_), others, clean_.rows(), desc.n_vocab,
                                            [this] { return proceed_(1); });
    if (divergent.size() != probes.size()) return cancelled();
    for (size_t i = 0; i < probes.size(); ++i) {
      const size_t v = probes[i];
      costs_[v].kl = mean_divergence(divergent[i]);
      if (!std::isfinite(costs_[v].kl)) {
        return error("layer {}: the model's output is not finite with the cache {}",
                     variants_[v].layer, variants_[v].kept.text);
      }
    }
    return {};
  }

  const Model& model_;
  const Corpus& corpus_;
  std::span<const KvVariant> variants_;
  const std::function<bool(double)>& proceed_;
  const KvRecipe halves_;
  std::vector<KvVariantCost> costs_;
  Matrix<float> clean_;              // [n_tokens, d_model] of the original
  std::vector<Matrix<float>> rows_;  // of each probe behind its layer; else empty
  Matrix<float> attention_;
  AttentionTap tap_;
  RopeTables rope_;
  int64_t longest_ = 0;
  std::map<std::string, KvCache> caches_;  // by how they are kept
};

}  // namespace

Result<std::vector<KvVariantCost>> measure_kv(const Model& model, const Corpus& corpus,
                                              std::span<const KvVariant> variants,
                                              const std::function<bool(double)>& proceed) {
  return KvMeasurement(model, corpus, variants, proceed).run();
}

}  // namespace quern
