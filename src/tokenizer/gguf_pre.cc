// SPDX-License-Identifier: Apache-2.0
// Names that need hand-written splitting (kimi-k2, afmoe) or no byte alphabet (gemma4, whitespace)
// are left out rather than approximated.
#include "tokenizer/gguf_pre.h"

#include <algorithm>

#include "tokenizer/byte_level.h"

namespace quern::tok {
namespace {

// "'s" and its kin in any case, then words with one leading character that is not a letter, then
// numbers of the given length, then signs, then white space.
#define QUERN_WORDS_THEN_NUMBERS(numbers)                                                          \
  R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|)" numbers \
  R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"

// Words cut where the case changes, with the endings that follow them.
#define QUERN_CASED_WORDS(ending, numbers)                                                  \
  R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)" ending  \
  R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)" ending \
  "|" numbers R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"

constexpr std::string_view kLlama3 = QUERN_WORDS_THEN_NUMBERS(R"(\p{N}{1,3})");
constexpr std::string_view kQwen2 = QUERN_WORDS_THEN_NUMBERS(R"(\p{N})");
constexpr std::string_view kTekken = QUERN_CASED_WORDS("", R"(\p{N})");
constexpr std::string_view kGpt4o =
    QUERN_CASED_WORDS("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", R"(\p{N}{1,3})");
constexpr std::string_view kQwen35 =
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|)"
    R"([^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepseek3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
    R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kChineseJapanese = "[一-龥぀-ゟ゠-ヿ]+";
constexpr std::string_view kSeedCoder =
    R"((?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Row {
  std::string_view names;  // separated by spaces
  GgufPre pre;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> kRows = {
      {"default", {{R"([\p{P}\$\+<=>\^~\|]+)", kGpt2Pattern, R"(\p{N}+)", "[0-9][0-9][0-9]"}}},
      {"gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat mellum a.x-4.0 "
       "modern-bert",
       {{kGpt2Pattern}}},
      {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
       {{kLlama3}, true, true}},
      {"dbrx smaug-bpe chatglm-bpe glm4", {{kLlama3}}},
      {"qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan solar-open grok-2", {{kQwen2}}},
      {"qwen35", {{kQwen35}}},
      {"tekken", {{kTekken}, true, true}},
      {"gpt-4o llama4", {{kGpt4o}}},
      {"seed-coder", {{kSeedCoder}}},
      {"deepseek-v3 hunyuan-dense", {{R"(\p{N}{1,3})", kChineseJapanese, kDeepseek3}}},
      {"deepseek-coder",
       {{R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", "[一-龥ࠀ-一가-퟿]+", R"(\p{N})"}}},
      {"starcoder refact command-r smollm codeshell exaone minerva-7b",
       {{R"(\p{N})", kGpt2Pattern}}},
      {"falcon", {{R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2Pattern, "[0-9][0-9][0-9]"}}},
  };
  return kRows;
}

bool has_name(std::string_view names, std::string_view name) {
  while (!names.empty()) {
    const size_t end = std::min(names.find(' '), names.size());
    if (names.substr(0, end) == name) return true;
    names.remove_prefix(std::min(end + 1, names.size()));
  }
  return false;
}

}  // namespace

Result<GgufPre> find_gguf_pre(std::string_view name) {
  std::string known;
  for (const Row& row : rows()) {
    if (has_name(row.names, name)) return row.pre;
    known += known.empty() ? "" : " ";
    known += row.names;
  }
  return error("tokenizer.ggml.pre '{}' is not supported; known: {}", name.substr(0, 64), known);
}

}  // namespace quern::tok
