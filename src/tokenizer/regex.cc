// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/regex.h"

#include "base/check.h"
#include "tokenizer/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace quern::tok {
namespace {

constexpr size_t kMaxPatternBytes = 16384;
constexpr uint32_t kMatchLimit = 2'000'000;  // raised with the length of the text, see cut()
constexpr uint32_t kHeapLimitKib = 256 * 1024;
constexpr size_t kJitStackStart = 64 * 1024, kJitStackMax = 128 * 1024 * 1024;
constexpr int kMaxFailures = 4;

}  // namespace

struct RegexScratch::State {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* jit_stack = nullptr;
  State() {
    QUERN_CHECK(match != nullptr && context != nullptr);
    pcre2_set_heap_limit(context, kHeapLimitKib);
  }
  ~State() {
    if (jit_stack != nullptr) pcre2_jit_stack_free(jit_stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
};

RegexScratch::RegexScratch() : state_(std::make_unique<State>()) {}
RegexScratch::~RegexScratch() = default;

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex::~Regex() = default;

Result<Regex> Regex::compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return error("pattern of {} bytes exceeds the limit of {}", pattern.size(), kMaxPatternBytes);
  }
  QUERN_ASSIGN(const std::string translated, translate_pattern(pattern));
  int code_error = 0;
  PCRE2_SIZE at = 0;
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  QUERN_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  auto code = std::make_unique<Code>();
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                             &code_error, &at, context.get());
  if (code->code == nullptr) {
    PCRE2_UCHAR text[256] = {};
    pcre2_get_error_message(code_error, text, sizeof text);
    return error("pattern '{}' cannot be compiled: {}", pattern, reinterpret_cast<char*>(text));
  }
  // Without a compiler for this machine matching is interpreted: slower, same result.
  (void)pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(code));
}

void Regex::cut(std::string_view text, RegexScratch* scratch,
                std::vector<Stretch>* stretches) const {
  stretches->clear();
  RegexScratch::State& state = *scratch->state_;
  const uint64_t limit = kMatchLimit + 16 * static_cast<uint64_t>(text.size());
  pcre2_set_match_limit(state.context,
                        limit < UINT32_MAX ? static_cast<uint32_t>(limit) : UINT32_MAX);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t done = 0, from = 0;
  int failures = 0;
  while (from <= text.size() && failures < kMaxFailures) {
    int rc = pcre2_match(code_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, state.match,
                         state.context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && state.jit_stack == nullptr) {
      state.jit_stack = pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr);
      QUERN_CHECK(state.jit_stack != nullptr);
      pcre2_jit_stack_assign(state.context, nullptr, state.jit_stack);
      continue;
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {  // a limit: leave one character unmatched and try after it
      ++failures;
      if (from >= text.size()) break;
      from += utf8_length(text[from]);
      continue;
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(state.match);
    const size_t begin = bounds[0], end = bounds[1];
    const bool is_repeat = begin == end && !stretches->empty() && stretches->back().end == end &&
                           stretches->back().is_match;
    if (!is_repeat) {
      if (done < begin) stretches->push_back({done, begin, false});
      stretches->push_back({begin, end, true});
      done = end;
    }
    from = end;
    if (begin == end) {
      if (end >= text.size()) break;
      from += utf8_length(text[end]);
    }
  }
  if (done < text.size()) stretches->push_back({done, text.size(), false});
}

}  // namespace quern::tok
