// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/tokenizer.h"

#include <filesystem>

#include "tokenizer/loaders.h"
#include "tokenizer/utf8.h"

namespace quern {

Result<std::unique_ptr<Tokenizer>> Tokenizer::open(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path given(path);
  if (given.extension() == ".gguf") return tok::open_gguf_tokenizer(path);
  const bool is_directory = fs::is_directory(given, ignored);
  if (!is_directory && !fs::exists(given, ignored)) {
    return error("{}: no such file or directory", path);
  }
  const fs::path directory = is_directory ? given : given.parent_path();
  if (is_directory ? fs::exists(given / "tokenizer.json", ignored) : given.extension() == ".json") {
    return tok::open_tokenizer_json(is_directory ? (given / "tokenizer.json").string() : path,
                                    directory.string());
  }
  if (is_directory ? fs::exists(given / "tokenizer.model", ignored)
                   : given.extension() == ".model") {
    return tok::open_tokenizer_model(is_directory ? (given / "tokenizer.model").string() : path,
                                     directory.string());
  }
  if (is_directory && fs::exists(given / "tokenizer.gguf", ignored)) {  // of a model made from GGUF
    return tok::open_gguf_tokenizer((given / "tokenizer.gguf").string());
  }
  return error("{}: expected a directory with tokenizer.json or tokenizer.model, or a .gguf file",
               path);
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  const std::string text = std::move(held_);
  held_.clear();
  // A character that may yet be completed: all that is left is a proper beginning of one.
  size_t end = text.size();
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const size_t at = text.size() - back;
    const auto byte = static_cast<unsigned char>(text[at]);
    if ((byte & 0xc0) == 0x80) continue;
    const size_t promised = byte < 0xc0 ? 1 : tok::utf8_length(text[at]);
    if (byte < 0xf5 && promised > back && tok::ill_formed_length(text, at) == back) end = at;
    break;
  }
  held_ = text.substr(end);
  return tok::to_valid_utf8(std::string_view(text).substr(0, end));
}

std::string Utf8Stream::flush() {
  const std::string text = std::move(held_);
  held_.clear();
  return tok::to_valid_utf8(text);
}

std::string TokenStream::push(Token id, bool with_special) {
  if (!with_special && tokenizer_.is_special(id)) return {};
  if (has_text_) return utf8_.push(tokenizer_.detokenize_middle({&id, 1}, with_special));
  head_.push_back(id);
  const std::string bytes = tokenizer_.detokenize(head_, with_special);
  has_text_ = !bytes.empty();
  return utf8_.push(bytes);
}

}  // namespace quern
