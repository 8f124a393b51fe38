// SPDX-License-Identifier: Apache-2.0
// Oniguruma to PCRE2. What differs and matters to tokenizers:
//   \s, \w       Oniguruma's sets are spelled out (PCRE2's \s adds U+180E, its \w lacks marks)
//   \h           a hexadecimal digit, not a horizontal space
//   X{n,m}+      the interval repeated, not a possessive interval
//   \p{Script}   the script itself, not its extensions
//   && and [ ]   set operations inside a class: refused
// Everything with a special meaning that is not listed in the code below is refused too.
#include <vector>

#include "tokenizer/regex.h"
#include "tokenizer/utf8.h"

namespace quern::tok {
namespace {

constexpr std::string_view kSpaceSet = R"(\t-\r \x{85}\p{Z})";
constexpr std::string_view kWordSet =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}\x{24b6}-\x{24e9})"
    R"(\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run() {
    if (!is_valid_utf8(in_)) return error("pattern is not valid UTF-8");
    while (at_ < in_.size()) QUERN_TRY(step());
    if (!groups_.empty()) return refuse("a group without its ')'");
    return std::move(out_);
  }

 private:
  static constexpr size_t kNoAtom = SIZE_MAX;

  tl::unexpected<Error> refuse(std::string_view what) const {
    return error("pattern '{}': {} at byte {} is not supported", in_, what, at_);
  }
  bool has(std::string_view text) const { return in_.substr(at_).starts_with(text); }
  void copy(size_t n) {
    out_.append(in_.substr(at_, n));
    at_ += n;
  }
  void begin_atom() { atom_ = out_.size(); }

  Status step() {
    switch (in_[at_]) {
      case '\\':
        begin_atom();
        return escape(false);
      case '[':
        begin_atom();
        return set();
      case '(':
        return open_group();
      case ')':
        if (groups_.empty()) return refuse("a ')' without its group");
        atom_ = groups_.back();
        groups_.pop_back();
        copy(1);
        return {};
      case '{':
        return brace();
      case '*':
      case '+':
      case '?':
        return quantifier();
      case '|':
      case '^':
      case '$':
        atom_ = kNoAtom;
        copy(1);
        return {};
      default:
        begin_atom();
        copy(utf8_length(in_[at_]));
        return {};
    }
  }

  Status open_group() {
    static constexpr std::string_view kKinds[] = {"(?:", "(?=",  "(?!",   "(?<=", "(?<!",
                                                  "(?>", "(?i:", "(?-i:", "(?i)", "(?-i)"};
    size_t length = 1;
    if (has("(*")) return refuse("'(*'");
    if (has("(?")) {
      length = 0;
      for (const std::string_view kind : kKinds) {
        if (has(kind)) length = kind.size();
      }
      if (length == 0) return refuse("this kind of group");
    }
    const bool is_flag = in_[at_ + length - 1] == ')';
    if (is_flag) {
      atom_ = kNoAtom;
    } else {
      groups_.push_back(out_.size());
    }
    copy(length);
    return {};
  }

  // One of * + ?, with the ? or + that may follow it.
  Status quantifier() {
    if (atom_ == kNoAtom) return refuse("a quantifier of nothing");
    copy(1);
    if (at_ < in_.size() && (in_[at_] == '?' || in_[at_] == '+')) copy(1);
    return {};
  }

  Status brace() {
    size_t end = at_ + 1;
    while (end < in_.size() && is_digit(in_[end])) ++end;
    const bool has_low = end > at_ + 1;
    const bool has_comma = end < in_.size() && in_[end] == ',';
    if (has_comma) {
      ++end;
      while (end < in_.size() && is_digit(in_[end])) ++end;
    }
    if (end >= in_.size() || in_[end] != '}' || !has_low) {
      if (has_comma && !has_low) return refuse("'{,'");
      begin_atom();  // an ordinary character
      out_ += "\\{";
      ++at_;
      return {};
    }
    if (atom_ == kNoAtom) return refuse("a quantifier of nothing");
    copy(end + 1 - at_);
    if (has("?")) {
      if (!has_comma) return refuse("'{n}?'");
      copy(1);
    } else if (has("+")) {
      out_.insert(atom_, "(?:");
      out_ += ")+";
      ++at_;
    }
    return {};
  }

  Status set() {
    copy(1);
    if (has("^")) copy(1);
    if (has("]")) return refuse("']' first in a class");
    while (at_ < in_.size() && in_[at_] != ']') {
      if (has("&&")) return refuse("'&&' in a class");
      if (has("[:")) {
        const size_t end = in_.find(":]", at_);
        if (end == std::string_view::npos) return refuse("'[' in a class");
        copy(end + 2 - at_);
      } else if (has("[")) {
        return refuse("'[' in a class");
      } else if (has("\\")) {
        QUERN_TRY(escape(true));
      } else {
        copy(utf8_length(in_[at_]));
      }
    }
    if (at_ == in_.size()) return refuse("a class without its ']'");
    copy(1);
    return {};
  }

  void put_set(std::string_view members, bool in_set) {
    if (!in_set) out_ += '[';
    out_ += members;
    if (!in_set) out_ += ']';
    at_ += 2;
  }

  void put_other_than(std::string_view members) {
    out_ += "[^";
    out_ += members;
    out_ += ']';
    at_ += 2;
  }

  Status escape(bool in_set) {
    if (at_ + 1 >= in_.size()) return refuse("a '\\' at the end");
    const char c = in_[at_ + 1];
    switch (c) {
      case 's':
        put_set(kSpaceSet, in_set);
        return {};
      case 'w':
        put_set(kWordSet, in_set);
        return {};
      case 'h':
        put_set("0-9a-fA-F", in_set);
        return {};
      case 'S':
      case 'W':
        if (!in_set) {
          put_other_than(c == 'S' ? kSpaceSet : kWordSet);
          return {};
        }
        [[fallthrough]];
      case 'd':
      case 'D':
      case 'n':
      case 't':
      case 'r':
      case 'f':
      case 'a':
      case 'e':
      case 'b':
        copy(2);
        return {};
      case 'v':
        out_ += "\\x0b";
        at_ += 2;
        return {};
      case 'B':
      case 'A':
      case 'z':
      case 'Z':
        if (in_set) return refuse("this escape in a class");
        atom_ = kNoAtom;
        copy(2);
        return {};
      case 'p':
      case 'P':
        return property();
      case 'x':
      case 'u':
        return code_point();
      default:
        break;
    }
    if (is_letter(c) || is_digit(c)) return refuse("this escape");
    out_ += '\\';
    ++at_;
    if (static_cast<unsigned char>(c) >= 0x80) out_.pop_back();
    copy(utf8_length(c));
    return {};
  }

  Status property() {
    const size_t end = in_.find('}', at_);
    if (!has("\\p{") && !has("\\P{")) return refuse("a property without '{'");
    if (end == std::string_view::npos) return refuse("a property without its '}'");
    std::string_view name = in_.substr(at_ + 3, end - at_ - 3);
    out_.append(in_.substr(at_, 3));
    if (name.starts_with('^')) {
      out_ += '^';
      name.remove_prefix(1);
    }
    if (name.empty()) return refuse("this property");
    for (const char c : name) {
      if (!is_letter(c) && c != '_' && c != '&') return refuse("this property");
    }
    static constexpr std::string_view kBinary[] = {"Any",       "Alphabetic",  "Lowercase",
                                                   "Uppercase", "White_Space", "Emoji"};
    bool is_binary = name.size() <= 2;
    for (const std::string_view binary : kBinary) is_binary = is_binary || name == binary;
    if (!is_binary) out_ += "sc:";
    out_ += name;
    out_ += '}';
    at_ = end + 1;
    return {};
  }

  // \xHH, \x{H...}, \uHHHH
  Status code_point() {
    const bool is_braced = has("\\x{");
    const size_t first = at_ + (is_braced ? 3 : 2);
    const size_t most = is_braced ? 8 : in_[at_ + 1] == 'u' ? 4 : 2;
    size_t end = first;
    while (end < in_.size() && end - first < most && is_hex(in_[end])) ++end;
    const bool is_closed = !is_braced || (end < in_.size() && in_[end] == '}');
    if (end == first || !is_closed || (in_[at_ + 1] == 'u' && end - first != 4)) {
      return refuse("this code point");
    }
    out_ += "\\x{";
    out_.append(in_.substr(first, end - first));
    out_ += '}';
    at_ = end + (is_braced ? 1 : 0);
    return {};
  }

  std::string_view in_;
  std::string out_;
  size_t at_ = 0;
  size_t atom_ = kNoAtom;       // where in out_ the last atom begins
  std::vector<size_t> groups_;  // where in out_ the open groups begin
};

}  // namespace

Result<std::string> translate_pattern(std::string_view pattern) {
  return Translator(pattern).run();
}

}  // namespace quern::tok
