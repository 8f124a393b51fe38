// SPDX-License-Identifier: Apache-2.0
// The one tokenizer behind every file format, put together from parts:
//
//   text -> added tokens | normalizers -> normalized added tokens | pre-tokenizers -> model -> ids
//   ids -> texts of tokens -> decoders -> text
//
// Broken UTF-8. The parts see valid text only. Where the vocabulary can say any byte (byte-level
// families, byte fallback) ill-formed bytes are cut out and become the tokens of those bytes, so
// that they survive a round trip; elsewhere they become U+FFFD before anything else is done.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/decoder.h"
#include "tokenizer/model.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

namespace quern::tok {

// How ill-formed bytes are written.
enum class RawBytes { kReplaced, kByteCharacters, kByteTokens };

// What joins the texts of tokens when there are no decoders.
enum class NoDecoder { kJoinsWithSpaces, kJoins };

struct Parts {
  std::shared_ptr<Vocabulary> vocabulary;  // shared with the model
  std::vector<AddedToken> added;
  Normalizers normalizers;
  PreTokenizers pre_tokenizers;
  std::unique_ptr<Model> model;
  Decoders decoders;
  NoDecoder no_decoder = NoDecoder::kJoins;
  RawBytes raw_bytes = RawBytes::kReplaced;
  std::optional<Token> bos, eos;
  bool adds_bos = false;
  std::string chat_template;
};

class Pipeline final : public Tokenizer {
 public:
  // Checks that ids are unique and in range.
  static Result<std::unique_ptr<Tokenizer>> create(Parts parts);

  std::vector<Token> tokenize(std::string_view text, const TokenizeOptions& options) const override;
  std::string detokenize(std::span<const Token> ids, bool with_special) const override;
  std::string detokenize_middle(std::span<const Token> ids, bool with_special) const override;
  int64_t n_vocab() const override { return n_vocab_; }
  std::optional<Token> bos() const override { return parts_.bos; }
  std::optional<Token> eos() const override { return parts_.eos; }
  bool adds_bos() const override { return parts_.adds_bos; }
  std::string token_text(Token id) const override;
  std::optional<Token> find(std::string_view token) const override;
  bool is_special(Token id) const override;
  const std::string& chat_template() const override { return parts_.chat_template; }

 private:
  class Run;

  explicit Pipeline(Parts parts) : parts_(std::move(parts)) {}
  Status index_added();
  std::string decode(std::span<const Token> ids, bool with_special, TextPlace place) const;

  Parts parts_;
  std::unordered_map<Token, size_t> added_by_id_;          // index in parts_.added
  std::unordered_map<std::string, size_t> added_by_text_;  // likewise
  std::unordered_map<Token, std::string> decoded_added_;   // what decoders see, if not the text
  AddedTokenMatcher in_input_, in_normalized_;
  std::vector<std::optional<Token>> byte_tokens_;
  int64_t n_vocab_ = 0;
  bool cuts_at_metaspace_ = false;
};

}  // namespace quern::tok
