// SPDX-License-Identifier: Apache-2.0
// Calibration samples: windows of equal length, each beginning with BOS where the model has one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/model.h"

namespace quern {

struct Corpus {
  std::vector<std::vector<Token>> samples;
  std::string digest;  // of the token ids
  std::string origin;  // file name, or how the text was made
  int64_t n_tokens() const;
};

// The first samples, cut short so that they have `limit` tokens together.
Corpus first_tokens(const Corpus& corpus, int64_t limit);

struct CorpusOptions {
  int64_t n_samples = 64;
  int64_t length = 512;  // tokens a sample, BOS included; at most the model's context
  uint64_t seed = 0;
  int64_t first_drawn = 0;  // of samples that the model draws, the number of the first
};

// Windows at seeded random places of a text. Fails when the text is shorter than one window.
Result<Corpus> corpus_from_text(const ModelDesc& model, const Tokenizer& tokenizer,
                                std::string_view text, const std::string& origin,
                                const CorpusOptions& options);

// Windows of the same text that share no token with those corpus_from_text takes under these
// options, as far as the text allows: `n` of them, or fewer.
Result<Corpus> held_out_from_text(const ModelDesc& model, const Tokenizer& tokenizer,
                                  std::string_view text, const std::string& origin,
                                  const CorpusOptions& options, int64_t n);

// Text the model itself draws (temperature 1, all tokens), for when the user has none. `proceed`
// is asked between steps with the share done; false cancels.
Result<Corpus> corpus_from_model(const Model& model, const CorpusOptions& options,
                                 const std::function<bool(double)>& proceed);

}  // namespace quern
