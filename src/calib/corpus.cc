// SPDX-License-Identifier: Apache-2.0
#include "calib/corpus.h"

#include <algorithm>

#include "base/digest.h"
#include "base/random.h"
#include "model/sampler.h"

namespace quern {
namespace {

constexpr uint64_t kPlaceStream = 0x10000;  // places of windows in a text
constexpr uint64_t kHeldOutStream = 0x18000;
constexpr uint64_t kSampleStream = 0x20000;  // draws of sample i: kSampleStream + i
constexpr int64_t kBatch = 64;               // sequences generated together

std::string samples_digest(const std::vector<std::vector<Token>>& samples) {
  Digest digest;
  for (const auto& sample : samples) digest.add(sample.data(), sample.size() * sizeof(Token));
  return digest.hex();
}

Status check_options(const ModelDesc& model, const CorpusOptions& options) {
  if (options.length < 2 || options.length > model.n_context) {
    return usage_error("calibration: {} tokens a sample, expected 2..{}", options.length,
                       model.n_context);
  }
  if (options.n_samples < 1) return usage_error("calibration: {} samples", options.n_samples);
  return {};
}

// The windows of a text, by the place of their first token.
class Windows {
 public:
  static Result<Windows> of(const ModelDesc& model, const Tokenizer& tokenizer,
                            std::string_view text, const std::string& origin,
                            const CorpusOptions& options) {
    QUERN_TRY(check_options(model, options));
    Windows windows;
    windows.ids_ = tokenizer.tokenize(text);
    if (Status known = check_ids(model, windows.ids_); !known) {
      return tl::unexpected(in_context(std::move(known).error(), origin));
    }
    windows.bos_ = model.bos;
    windows.run_ = static_cast<uint64_t>(options.length - (model.bos >= 0 ? 1 : 0));
    if (windows.ids_.size() < windows.run_) {
      return error("{}: {} tokens, expected at least one window of {}", origin, windows.ids_.size(),
                   windows.run_);
    }
    return windows;
  }

  uint64_t n_places() const { return ids_.size() - run_ + 1; }
  std::vector<uint64_t> places(const CorpusOptions& options) const {
    Random random(options.seed, kPlaceStream);
    std::vector<uint64_t> places(static_cast<size_t>(options.n_samples));
    for (uint64_t& place : places) place = random.below(n_places());
    return places;
  }
  bool overlap(uint64_t a, uint64_t b) const { return (a > b ? a - b : b - a) < run_; }
  std::vector<Token> at(uint64_t place) const {
    const auto first = ids_.begin() + static_cast<int64_t>(place);
    std::vector<Token> sample;
    if (bos_ >= 0) sample.push_back(bos_);
    sample.insert(sample.end(), first, first + static_cast<int64_t>(run_));
    return sample;
  }

 private:
  std::vector<Token> ids_;
  Token bos_ = -1;
  uint64_t run_ = 0;  // tokens of a window but for its BOS
};

constexpr int64_t kHeldOutTrials = 1000;  // for each window

}  // namespace

int64_t Corpus::n_tokens() const {
  int64_t total = 0;
  for (const auto& sample : samples) total += static_cast<int64_t>(sample.size());
  return total;
}

Result<Corpus> corpus_from_text(const ModelDesc& model, const Tokenizer& tokenizer,
                                std::string_view text, const std::string& origin,
                                const CorpusOptions& options) {
  QUERN_ASSIGN(const Windows windows, Windows::of(model, tokenizer, text, origin, options));
  Corpus corpus;
  corpus.origin = origin;
  for (const uint64_t place : windows.places(options)) {
    corpus.samples.push_back(windows.at(place));
  }
  corpus.digest = samples_digest(corpus.samples);
  return corpus;
}

Result<Corpus> held_out_from_text(const ModelDesc& model, const Tokenizer& tokenizer,
                                  std::string_view text, const std::string& origin,
                                  const CorpusOptions& options, int64_t n) {
  QUERN_ASSIGN(const Windows windows, Windows::of(model, tokenizer, text, origin, options));
  const std::vector<uint64_t> taken = windows.places(options);
  Corpus corpus;
  corpus.origin = origin;
  Random random(options.seed, kHeldOutStream);
  for (int64_t trial = 0; trial < kHeldOutTrials * n; ++trial) {
    if (static_cast<int64_t>(corpus.samples.size()) == n) break;
    const uint64_t place = random.below(windows.n_places());
    if (std::none_of(taken.begin(), taken.end(),
                     [&](uint64_t other) { return windows.overlap(place, other); })) {
      corpus.samples.push_back(windows.at(place));
    }
  }
  corpus.digest = samples_digest(corpus.samples);
  return corpus;
}

Result<Corpus> corpus_from_model(const Model& model, const CorpusOptions& options,
                                 const std::function<bool(double)>& proceed) {
  const ModelDesc& desc = model.desc();
  QUERN_TRY(check_options(desc, options));
  Corpus corpus;
  corpus.origin = "drawn from the model";
  corpus.samples.resize(static_cast<size_t>(options.n_samples));
  for (int64_t first = 0; first < options.n_samples; first += kBatch) {
    const int64_t n = std::min(kBatch, options.n_samples - first);
    std::vector<KvCache> caches;
    std::vector<Random> randoms;
    std::vector<Token> last(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      QUERN_ASSIGN(KvCache cache, model.make_cache(options.length));
      caches.push_back(std::move(cache));
      randoms.emplace_back(options.seed,
                           kSampleStream + static_cast<uint64_t>(options.first_drawn + first + i));
      // Without a BOS every sample starts from a token of its own.
      last[static_cast<size_t>(i)] =
          desc.bos >= 0
              ? desc.bos
              : static_cast<Token>(randoms.back().below(static_cast<uint64_t>(desc.n_vocab)));
      corpus.samples[static_cast<size_t>(first + i)].push_back(last[static_cast<size_t>(i)]);
    }
    Matrix<float> hidden(n, desc.d_model), logits(n, desc.n_vocab);
    for (int64_t step = 1; step < options.length; ++step) {
      const double done = static_cast<double>(first * options.length + n * step) /
                          static_cast<double>(options.n_samples * options.length);
      if (!proceed(done)) return cancelled();
      QUERN_TRY(model.step_batch(caches, last, hidden.view()));
      model.logits(hidden.view(), logits.view());
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i);
        last[at] = sample_plain({logits.row(i), static_cast<size_t>(desc.n_vocab)}, randoms[at]);
        corpus.samples[static_cast<size_t>(first + i)].push_back(last[at]);
      }
    }
  }
  corpus.digest = samples_digest(corpus.samples);
  return corpus;
}

Corpus first_tokens(const Corpus& corpus, int64_t limit) {
  Corpus part;
  for (const auto& sample : corpus.samples) {
    const int64_t n = std::min<int64_t>(limit, static_cast<int64_t>(sample.size()));
    if (n < 2) break;
    part.samples.emplace_back(sample.begin(), sample.begin() + n);
    limit -= n;
  }
  return part;
}

}  // namespace quern
