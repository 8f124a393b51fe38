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
  // Recognise special tokens written in the text. Other added tokens are always recognised.
  bool parse_special = false;
};

class Tokenizer {
 public:
  // `path` is the directory of a Hugging Face checkpoint (tokenizer.json, else tokenizer.model),
  // one of these files itself, or a .gguf. A tokenizer is const and may be used by many threads.
  static Result<std::unique_ptr<Tokenizer>> open(const std::string& path);

  virtual ~Tokenizer() = default;

  // Never adds BOS or EOS: callers do, with the ids below. Any bytes are taken: where they are not
  // UTF-8, families that can say bytes keep them and the others read U+FFFD.
  virtual std::vector<Token> tokenize(std::string_view text,
                                      const TokenizeOptions& options = {}) const = 0;
  // Bytes of the text; special tokens are skipped unless asked for. May be broken UTF-8 in the
  // middle of a character (see Utf8Stream).
  virtual std::string detokenize(std::span<const Token> ids, bool with_special = false) const = 0;
  // The same for ids that continue a text: keeps the space that some families drop at its start.
  virtual std::string detokenize_middle(std::span<const Token> ids,
                                        bool with_special = false) const = 0;

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
// flush() the rest. U+FFFD stands for what never became a character.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  std::string flush();

 private:
  std::string held_;  // the beginning of a character
};

// Turns tokens, as they are made, into text. The tokenizer outlives the stream.
class TokenStream {
 public:
  explicit TokenStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // Text that the token completes; may be empty.
  std::string push(Token id, bool with_special = false);
  std::string flush() { return utf8_.flush(); }

 private:
  const Tokenizer& tokenizer_;
  Utf8Stream utf8_;
  std::vector<Token> head_;  // tokens until the first text: together they begin it
  bool has_text_ = false;
};

}  // namespace quern
