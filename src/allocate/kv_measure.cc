// SPDX-License-Identifier: Apache-2.0
#include "allocate/kv_measure.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "eval/divergence.h"
#include "model/rope.h"

namespace quern {
namespace {

tl::unexpected<Error> cancelled() {
  return tl::unexpected(Error{ErrorKind::kCancelled, "cancelled"});
}

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
    clean_ = Matrix<float>(corpus_.n_tokens(), model_.desc().d_model);
    int64_t row = 0;
    for (const auto& sample : corpus_.samples) {
      QUERN_TRY(check_ids(model_.desc(), sample));
      const auto n = static_cast<int64_t>(sample.size());
      embed(model_.desc(), model_.parts().ends, sample, 0, clean_.view().row_range(row, n));
      row += n;
    }
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
    const int64_t n = clean_.rows(), chunk = logit_rows(desc.n_vocab);
    std::vector<double> sums(variants_.size(), 0);
    for (int64_t row = 0; row < n; row += chunk) {
      const int64_t count = std::min(chunk, n - row);
      Matrix<float> p(count, desc.n_vocab), q(count, desc.n_vocab);
      std::vector<double> kl(static_cast<size_t>(count));
      model_.logits(clean_.view().row_range(row, count), p.view());
      for (size_t v = 0; v < variants_.size(); ++v) {
        if (rows_[v].empty()) continue;
        if (!proceed_(1)) return cancelled();
        model_.logits(rows_[v].view().row_range(row, count), q.view());
        divergences(p, q, kl);
        for (const double one : kl) sums[v] += one;
      }
    }
    for (size_t v = 0; v < variants_.size(); ++v) {
      if (rows_[v].empty()) continue;
      costs_[v].kl = std::max(0.0, sums[v] / static_cast<double>(n));
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
