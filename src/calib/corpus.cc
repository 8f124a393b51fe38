// SPDX-License-Identifier: Apache-2.0
#include "calib/corpus.h"

#include <algorithm>

#include "base/digest.h"
#include "base/random.h"
#include "model/sampler.h"

namespace quern {
namespace {

constexpr uint64_t kPlaceStream = 0x10000;   // places of windows in a text
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

}  // namespace

int64_t Corpus::n_tokens() const {
  int64_t total = 0;
  for (const auto& sample : samples) total += static_cast<int64_t>(sample.size());
  return total;
}

Result<Corpus> corpus_from_text(const ModelDesc& model, const Tokenizer& tokenizer,
                                std::string_view text, const std::string& origin,
                                const CorpusOptions& options) {
  QUERN_TRY(check_options(model, options));
  const std::vector<Token> ids = tokenizer.tokenize(text);
  if (Status known = check_ids(model, ids); !known) {
    return tl::unexpected(in_context(std::move(known).error(), origin));
  }
  const bool has_bos = model.bos >= 0;
  const int64_t run = options.length - (has_bos ? 1 : 0);
  if (static_cast<int64_t>(ids.size()) < run) {
    return error("{}: {} tokens, expected at least one window of {}", origin, ids.size(), run);
  }
  Corpus corpus;
  corpus.origin = origin;
  Random random(options.seed, kPlaceStream);
  for (int64_t i = 0; i < options.n_samples; ++i) {
    const auto first =
        static_cast<int64_t>(random.below(ids.size() - static_cast<uint64_t>(run) + 1));
    std::vector<Token> sample;
    if (has_bos) sample.push_back(model.bos);
    sample.insert(sample.end(), ids.begin() + first, ids.begin() + first + run);
    corpus.samples.push_back(std::move(sample));
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
      randoms.emplace_back(options.seed, kSampleStream + static_cast<uint64_t>(first + i));
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
      if (!proceed(done)) return tl::unexpected(Error{ErrorKind::kCancelled, "cancelled"});
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

}  // namespace quern
