// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/regex.h"

#include <gtest/gtest.h>

#include <chrono>

namespace quern::tok {
namespace {

// The matches of `pattern`, in brackets within the text.
std::string cut(std::string_view pattern, std::string_view text) {
  const auto regex = Regex::compile(pattern);
  if (!regex) return regex.error().message;
  RegexScratch scratch;
  std::vector<Stretch> stretches;
  regex->cut(text, &scratch, &stretches);
  std::string out;
  size_t at = 0;
  for (const Stretch& s : stretches) {
    EXPECT_EQ(s.begin, at);  // stretches cover the text
    at = s.end;
    const std::string part(text.substr(s.begin, s.end - s.begin));
    out += s.is_match ? "[" + part + "]" : part;
  }
  EXPECT_EQ(at, text.size());
  return out;
}

TEST(Regex, CutsAtMatches) {
  EXPECT_EQ(cut("a+", "baac"), "b[aa]c");
  EXPECT_EQ(cut("x", "abc"), "abc");
  EXPECT_EQ(cut("a", ""), "");
  EXPECT_EQ(cut("(?=b)", "abab"), "a[]ba[]b");
  EXPECT_EQ(cut("b*", "abb"), "[]a[bb]");
}

TEST(Regex, MeansWhatTheReferenceMeans) {
  EXPECT_EQ(cut(R"(\s+)", "a\u180e\u00a0\u3000b"), "a\u180e[\u00a0\u3000]b");
  EXPECT_EQ(cut(R"(\S+)", "a\u180e b"), "[a\u180e] [b]");
  EXPECT_EQ(cut(R"(\w+)", "e\u0301_1\u00b2-"), "[e\u0301_1\u00b2]-");
  EXPECT_EQ(cut(R"(\p{N}{1,3}+)", "1234567"), "[1234567]");  // an interval, repeated
  EXPECT_EQ(cut(R"((?:ab){1,2}+)", "ababab"), "[ababab]");
  EXPECT_EQ(cut(R"([ab]{2}+c)", "ababc"), "[ababc]");
  EXPECT_EQ(cut(R"(a?+a)", "aa"), "[aa]");
  EXPECT_EQ(cut(R"(\h+)", "xyzfF09 "), "xyz[fF09] ");
  EXPECT_EQ(cut(R"(b$)", "ab\nab"), "a[b]\na[b]");
  EXPECT_EQ(cut(R"((?i:'s))", "x'S"), "x['S]");
  EXPECT_EQ(cut(R"(\p{Han}+)", "a漢字、b"), "a[漢字]、b");  // a script, not its extensions
  EXPECT_EQ(cut(R"(\p{^L}+)", "a12b"), "a[12]b");
  EXPECT_EQ(cut(R"([\x{4e00}-\x{9fa5}]+)", "a漢b"), "a[漢]b");
  EXPECT_EQ(cut(R"(a{x)", "a{x"), "[a{x]");
}

TEST(Regex, RefusesWhatItCannotMean) {
  for (const char* pattern :
       {"[a&&b]", "[a[b]]",   "[]a]",      "(?<name>a)", "(?R)",
        "(?#x)",  "(?C)",     "(*ACCEPT)", R"(\1)",      R"(\K)",
        R"(\X)",  R"(\g<1>)", R"(a\)",     "(a",         "a)",
        "[a",     "*a",       "a{,3}",     "a{2}?",      R"(\p{NoSuchScript})",
        R"(\x)",  R"(\pL)",   "\xff"}) {
    EXPECT_FALSE(Regex::compile(pattern)) << pattern;
  }
  EXPECT_FALSE(Regex::compile(std::string(20000, 'a')));
}

TEST(Regex, CatastrophicPatternsEnd) {
  const auto start = std::chrono::steady_clock::now();
  const std::string text(5000, 'a');
  EXPECT_EQ(cut("(a+)+b", text), text);
  EXPECT_EQ(cut("(a|aa)+$", text + "!"), text + "!");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 30.0);
}

TEST(Regex, LongMatchesDoNotOverflow) {
  const size_t n = 1 << 20;
  // EXPECT_TRUE: the texts are too long to print.
  EXPECT_TRUE(cut(R"((?:[^\s]|x)+)", std::string(n, 'a')) == "[" + std::string(n, 'a') + "]");
  EXPECT_TRUE(cut(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", std::string(n, ' ')) ==
              "[" + std::string(n, ' ') + "]");
}

}  // namespace
}  // namespace quern::tok
