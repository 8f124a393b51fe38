// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back. One class for every family (byte-level BPE, SentencePiece BPE with
// byte fallback, Unigram); the family is a private model behind it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern {

using Token = int32_t;

struct TokenizeOptions {
  bool parse_special = false;  // recognise special tokens written in the text
};

class Tokenizer {
 public:
  // `directory` of a Hugging Face checkpoint: tokenizer.json, else tokenizer.model; or a .gguf.
  static Result<std::unique_ptr<Tokenizer>> open(const std::string& path);

  virtual ~Tokenizer() = default;

  // Never adds BOS or EOS: callers do, with the ids below.
  virtual std::vector<Token> tokenize(std::string_view text,
                                      const TokenizeOptions& options = {}) const = 0;
  // Bytes of the text; special tokens are skipped unless asked for. May be broken UTF-8 in the
  // middle of a character (see Utf8Stream).
  virtual std::string detokenize(std::span<const Token> ids, bool with_special = false) const = 0;

  virtual int64_t n_vocab() const = 0;
  virtual std::optional<Token> bos() const = 0;
  virtual std::optional<Token> eos() const = 0;
  virtual bool adds_bos() const = 0;                   // by the tokenizer's own default
  virtual std::string token_text(Token id) const = 0;  // as stored, for inspection
  virtual std::optional<Token> find(std::string_view token) const = 0;
  virtual bool is_special(Token id) const = 0;
  virtual const std::string& chat_template() const = 0;  // Jinja source, empty if none
};

// Turns a stream of byte pieces into whole UTF-8 characters: push() returns what is complete,
// flush() the rest with U+FFFD in place of what never became a character.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  std::string flush();

 private:
  std::string held_;
};

}  // namespace quern
