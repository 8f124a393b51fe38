// SPDX-License-Identifier: Apache-2.0
#include "eval/speed.h"

#include <algorithm>
#include <chrono>

#include "base/checked.h"
#include "base/parallel.h"
#include "base/random.h"
#include "model/sampler.h"

namespace quern {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kDecodedFloats = 64 << 10;  // of a piece: they stay in the second cache

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One repetition. The sequences share a prompt, which is run once and copied, and part ways at
// their first tokens.
class SpeedRun {
 public:
  SpeedRun(const Model& model, const SpeedOptions& options, int number)
      : model_(model), o_(options), number_(number), random_(options.seed) {}

  // Behind what `filled` holds.
  Status run(const KvCache& filled, SpeedResult& result) {
    std::vector<KvCache> caches;
    caches.push_back(filled.copy());
    QUERN_TRY(run_prompt(caches[0], result));
    result.kv_bytes = caches[0].n_bytes();
    if (o_.n_generate == 0) return {};
    // Nothing is shared: that would spare memory and time.
    for (int64_t i = 1; i < o_.n_sequences; ++i) caches.push_back(caches[0].copy());
    QUERN_TRY(run_steps(caches, result));
    result.kv_bytes_per_token = bytes_read(caches[0]);
    return {};
  }

  // What a long context costs does not depend on what it says: one block of rows, over and over.
  Status fill(KvCache& cache) {
    constexpr int64_t kRows = 512;
    const std::vector<LayerDesc>& layers = model_.desc().layers;
    for (size_t i = 0; i < layers.size(); ++i) {
      const AttentionDesc& a = layers[i].attention;
      Matrix<float> rows(std::min(kRows, o_.depth), a.n_kv_heads * a.d_head);
      for (int64_t j = 0; j < rows.rows() * rows.cols(); ++j) {
        rows.data()[j] = static_cast<float>(random_.gaussian());
      }
      for (int64_t p = 0; p < o_.depth; p += kRows) {
        QUERN_TRY(proceed(0, "fill the cache"));
        const auto part = rows.view().row_range(0, std::min(kRows, o_.depth - p));
        cache.layer(i).put(p, part, part);
      }
    }
    cache.advance(o_.depth);
    return {};
  }

 private:
  Token random_token() {
    return static_cast<Token>(random_.below(static_cast<uint64_t>(model_.desc().n_vocab)));
  }

  Status proceed(double part, std::string_view what) const {
    if (o_.proceed((number_ + part) / o_.repetitions, what)) return {};
    return cancelled();
  }

  Status run_prompt(KvCache& cache, SpeedResult& result) {
    QUERN_TRY(proceed(0, "prompt"));
    std::vector<Token> prompt(static_cast<size_t>(o_.n_prompt));
    for (Token& token : prompt) token = random_token();
    Matrix<float> hidden(o_.n_prompt, model_.desc().d_model), logits(1, model_.desc().n_vocab);
    const Start start(model_);
    QUERN_TRY(model_.forward(cache, prompt, hidden.view()));
    model_.end_prompt(cache);
    model_.logits(hidden.view().row_range(o_.n_prompt - 1, 1), logits.view());
    record(o_.n_prompt, start, result.prompt);
    return {};
  }

  Status run_steps(std::vector<KvCache>& caches, SpeedResult& result) {
    std::vector<Token> tokens(caches.size());
    for (Token& token : tokens) token = random_token();
    Matrix<float> hidden(o_.n_sequences, model_.desc().d_model);
    Matrix<float> logits(o_.n_sequences, model_.desc().n_vocab);
    const Start start(model_);
    for (int64_t i = 0; i < o_.n_generate; ++i) {
      QUERN_TRY(proceed(0.5 + 0.5 * static_cast<double>(i) / static_cast<double>(o_.n_generate),
                        "generation"));
      QUERN_TRY(model_.step_batch(caches, tokens, hidden.view()));
      model_.logits(hidden.view(), logits.view());
      for (size_t s = 0; s < tokens.size(); ++s) {
        tokens[s] = argmax(
            {logits.row(static_cast<int64_t>(s)), static_cast<size_t>(model_.desc().n_vocab)});
      }
    }
    record(o_.n_generate * o_.n_sequences, start, result.generated);
    return {};
  }

  // The clock and the model's counts when a run began.
  struct Start {
    explicit Start(const Model& model)
        : online(model.online_seconds()), attention(model.attention_seconds()) {}
    double online, attention;
    Clock::time_point time = Clock::now();
  };
  void record(int64_t n_tokens, const Start& start, Rates& rates) const {
    const double seconds = seconds_since(start.time);
    rates.runs.push_back(static_cast<double>(n_tokens) / seconds);
    rates.online.push_back((model_.online_seconds() - start.online) / seconds);
    rates.attention.push_back((model_.attention_seconds() - start.attention) / seconds);
  }

  // By the newest position of a cache.
  int64_t bytes_read(KvCache& cache) const {
    int64_t total = 0;
    for (size_t i = 0; i < model_.desc().layers.size(); ++i) {
      const int64_t window = model_.desc().layers[i].attention.window, last = cache.length();
      const int64_t first = window > 0 ? std::max<int64_t>(0, last - window) : 0;
      total += cache.layer(i).bytes_read(first, last);
    }
    return total;
  }

  const Model& model_;
  const SpeedOptions& o_;
  int number_;
  Random random_;
};

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

}  // namespace

double Rates::median() const { return median_of(runs); }
double Rates::median_online() const { return median_of(online); }
double Rates::median_attention() const { return median_of(attention); }

double Rates::min() const { return runs.empty() ? 0 : *std::min_element(runs.begin(), runs.end()); }

Result<SpeedResult> measure_speed(const Model& model, const SpeedOptions& options) {
  if (options.depth < 0 || options.n_prompt < 1 || options.n_generate < 0 ||
      options.n_sequences < 1) {
    return usage_error(
        "speed behind {} tokens of {} prompt tokens, {} steps, {} sequences: expected at least "
        "0, 1, 0, 1",
        options.depth, options.n_prompt, options.n_generate, options.n_sequences);
  }
  SpeedResult result;
  const int64_t room = options.depth + options.n_prompt + options.n_generate;
  QUERN_ASSIGN(KvCache filled, model.make_cache(room, options.kv));
  QUERN_TRY(SpeedRun(model, options, 0).fill(filled));
  for (int r = 0; r < options.repetitions; ++r) {
    QUERN_TRY(SpeedRun(model, options, r).run(filled, result));
  }
  return result;
}

WeightWork weight_work(const Model& model) {
  WeightWork work;
  double last = 0;
  model.for_each_linear([&](const LinearWeight& weight) {
    last = static_cast<double>(weight.n_out) * static_cast<double>(weight.n_in);
    work.per_token += last;
  });
  return {work.per_token - last, last};
}

namespace {

// What `name` says of the matrices, each once, in order of appearance; empty names are left out.
std::string names_of(const Model& model,
                     const std::function<std::string(const LinearWeight&)>& name) {
  std::vector<std::string> names;
  model.for_each_linear([&](const LinearWeight& weight) {
    const std::string text = name(weight);
    if (text.empty() || std::find(names.begin(), names.end(), text) != names.end()) return;
    names.push_back(text);
  });
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

std::string codec_names(const Model& model) {
  return names_of(model, [](const LinearWeight& weight) {
    if (weight.codec != nullptr) return weight.codec->spec();
    std::string name;
    for (const char c : dtype_name(weight.dtype)) name += static_cast<char>(std::tolower(c));
    return name;
  });
}

std::string act_names(const Model& model) {
  return names_of(model, [](const LinearWeight& weight) {
    return weight.codec == nullptr || weight.rounding == nullptr ? std::string()
                                                                 : weight.rounding->act->spec();
  });
}

double measure_decoding(const Model& model) {
  double n_weights = 0;
  int n_passes = 0;
  const auto start = Clock::now();
  do {
    model.for_each_linear([&](const LinearWeight& weight) {
      if (weight.codec == nullptr) return;
      n_weights += static_cast<double>(weight.n_out) * static_cast<double>(weight.n_in);
      const int64_t rows =
          round_up(std::max<int64_t>(1, kDecodedFloats / weight.n_in), weight.codec->decode_unit());
      parallel_for(weight.n_out, rows, [&](int64_t begin, int64_t end) {
        thread_local AlignedVector<float> decoded;
        decoded.resize(static_cast<size_t>(rows * weight.n_in));
        decode_rows(weight, begin, end - begin, decoded.data());
      });
    });
    ++n_passes;
  } while (n_weights > 0 && seconds_since(start) < 0.05);
  return n_weights / seconds_since(start);
}

}  // namespace quern
