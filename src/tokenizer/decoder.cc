// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/decoder.h"

#include "tokenizer/byte_level.h"
#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

class ByteLevelDecoder final : public Decoder {
 public:
  void apply(std::vector<std::string>* tokens, TextPlace) const override {
    for (std::string& token : *tokens) {
      if (auto bytes = from_byte_characters(token)) token = std::move(*bytes);
    }
  }
};

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, done)) {
    out.append(text.substr(done, at - done));
    out.append(to);
    done = at + from.size();
  }
  out.append(text.substr(done));
  return out;
}

class MetaspaceDecoder final : public Decoder {
 public:
  MetaspaceDecoder(std::string replacement, MetaspaceStart start)
      : replacement_(std::move(replacement)), start_(start) {}

  void apply(std::vector<std::string>* tokens, TextPlace place) const override {
    for (size_t i = 0; i < tokens->size(); ++i) {
      const bool drops = i == 0 && place == TextPlace::kStart && start_ == MetaspaceStart::kDropped;
      std::string& token = (*tokens)[i];
      token = replace_all(token, replacement_, drops ? "" : " ");
    }
  }

 private:
  std::string replacement_;
  MetaspaceStart start_;
};

class ByteFallbackDecoder final : public Decoder {
 public:
  void apply(std::vector<std::string>* tokens, TextPlace) const override {
    std::vector<std::string> out;
    bool is_after_byte = false;
    for (std::string& token : *tokens) {
      const int byte = byte_of_token(token);
      if (byte < 0) {
        out.push_back(std::move(token));
      } else if (is_after_byte) {
        out.back().push_back(static_cast<char>(byte));
      } else {
        out.emplace_back(1, static_cast<char>(byte));
      }
      is_after_byte = byte >= 0;
    }
    *tokens = std::move(out);
  }
};

class FuseDecoder final : public Decoder {
 public:
  void apply(std::vector<std::string>* tokens, TextPlace) const override {
    std::string all;
    for (const std::string& token : *tokens) all += token;
    tokens->assign(1, std::move(all));
  }
};

class ReplaceDecoder final : public Decoder {
 public:
  ReplaceDecoder(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void apply(std::vector<std::string>* tokens, TextPlace) const override {
    RegexScratch scratch;
    std::vector<Stretch> stretches;
    for (std::string& token : *tokens) {
      if (!is_valid_utf8(token)) continue;  // bytes of a character that other tokens complete
      pattern_.cut(token, &scratch, &stretches);
      std::string text;
      for (const Stretch& s : stretches) {
        text += s.is_match ? std::string_view(content_)
                           : std::string_view(token).substr(s.begin, s.end - s.begin);
      }
      token = std::move(text);
    }
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class StripDecoder final : public Decoder {
 public:
  StripDecoder(std::string content, size_t start, size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}

  void apply(std::vector<std::string>* tokens, TextPlace place) const override {
    for (std::string& token : *tokens) {
      std::string_view text = token;
      // A step before may have joined all tokens; then the start is that of the text.
      const bool is_text = tokens->size() == 1;
      const size_t start = is_text && place == TextPlace::kMiddle ? 0 : start_;
      for (size_t i = 0; i < start && text.starts_with(content_); ++i) {
        text.remove_prefix(content_.size());
      }
      for (size_t i = 0; i < stop_ && text.ends_with(content_); ++i) {
        text.remove_suffix(content_.size());
      }
      token = std::string(text);
    }
  }

 private:
  std::string content_;
  size_t start_, stop_;
};

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

int byte_of_token(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const int high = hex_digit(text[3]), low = hex_digit(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::unique_ptr<Decoder> make_byte_level_decoder() { return std::make_unique<ByteLevelDecoder>(); }
std::unique_ptr<Decoder> make_metaspace_decoder(std::string replacement, MetaspaceStart start) {
  return std::make_unique<MetaspaceDecoder>(std::move(replacement), start);
}
std::unique_ptr<Decoder> make_byte_fallback_decoder() {
  return std::make_unique<ByteFallbackDecoder>();
}
std::unique_ptr<Decoder> make_fuse_decoder() { return std::make_unique<FuseDecoder>(); }
std::unique_ptr<Decoder> make_replace_decoder(Pattern pattern, std::string content) {
  return std::make_unique<ReplaceDecoder>(std::move(pattern), std::move(content));
}
std::unique_ptr<Decoder> make_strip_decoder(std::string content, size_t start, size_t stop) {
  return std::make_unique<StripDecoder>(std::move(content), start, stop);
}

}  // namespace quern::tok
