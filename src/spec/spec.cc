// SPDX-License-Identifier: Apache-2.0
#include "spec/spec.h"

#include <charconv>
#include <cmath>

namespace quern::spec {
namespace {

constexpr size_t kMaxText = 64 << 10;
constexpr int kMaxDepth = 16;
constexpr int64_t kMaxLayer = 1'000'000;

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_char(char c) { return is_name_start(c) || is_digit(c); }

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<std::vector<Stage>> recipe() {
    std::vector<Stage> stages;
    skip_separators();
    while (position_ < text_.size()) {
      QUERN_ASSIGN(Stage stage, this->stage());
      stages.push_back(std::move(stage));
      const size_t before = position_;
      skip_separators();
      if (position_ < text_.size() && position_ == before) {
        return fail("expected '|', '@' or the end");
      }
    }
    if (stages.empty()) return fail("expected a stage");
    return stages;
  }

  Result<Call> whole_call() {
    QUERN_ASSIGN(Call call, this->call(0));
    skip_space();
    if (position_ < text_.size()) return fail("expected the end");
    return call;
  }

 private:
  tl::unexpected<Error> fail(std::string_view what) {
    const std::string got = position_ < text_.size()
                                ? fmt::format("'{}'", printable(text_[position_]))
                                : std::string("the end");
    return usage_error("recipe: column {}: {}, got {}", position_ + 1, what, got);
  }
  static std::string printable(char c) {
    return c >= 32 && c < 127 ? std::string(1, c)
                              : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }

  char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }
  // Within a stage: blanks only. Between stages also newlines, '|' and comments.
  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\r') ++position_;
  }
  // Inside parentheses a line may break.
  void skip_inner_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\r' || peek() == '\n') ++position_;
  }
  void skip_separators() {
    bool bar = false;
    for (;;) {
      skip_inner_space();
      if (peek() == '#') {
        while (position_ < text_.size() && peek() != '\n') ++position_;
      } else if (peek() == '|' && !bar && position_ > 0) {
        bar = true;
        ++position_;
      } else {
        return;
      }
    }
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++position_;
    return true;
  }

  Result<std::string> name() {
    if (!is_name_start(peek())) return fail("expected a name");
    const size_t begin = position_;
    while (is_name_char(peek())) ++position_;
    return std::string(text_.substr(begin, position_ - begin));
  }

  // '-' joins the words of presets.
  Result<std::string> call_name() {
    const size_t begin = position_;
    QUERN_TRY(name());
    while (peek() == '-' && position_ + 1 < text_.size() && is_name_char(text_[position_ + 1])) {
      ++position_;
      while (is_name_char(peek())) ++position_;
    }
    return std::string(text_.substr(begin, position_ - begin));
  }

  Result<Stage> stage() {
    Stage stage;
    QUERN_ASSIGN(stage.call, call(0));
    skip_space();
    if (take('@')) {
      QUERN_ASSIGN(stage.where, where());
    }
    skip_space();
    if (position_ < text_.size() && peek() != '|' && peek() != '\n' && peek() != '#') {
      return fail("expected '|', '@' or the end");
    }
    return stage;
  }

  Result<Call> call(int depth) {
    if (depth > kMaxDepth) return fail("calls are nested too deeply");
    skip_inner_space();
    Call call;
    QUERN_ASSIGN(call.name, call_name());
    skip_space();
    if (!take('(')) return call;
    skip_inner_space();
    if (take(')')) return call;
    for (;;) {
      QUERN_ASSIGN(Arg arg, this->arg(depth));
      call.args.push_back(std::move(arg));
      skip_inner_space();
      if (take(')')) return call;
      if (!take(',')) return fail("expected ',' or ')'");
    }
  }

  Result<Arg> arg(int depth) {
    skip_inner_space();
    Arg arg;
    const size_t begin = position_;
    if (is_name_start(peek())) {
      QUERN_ASSIGN(std::string key, name());
      skip_space();
      if (take('=')) {
        arg.name = std::move(key);
      } else {
        position_ = begin;
      }
    }
    skip_inner_space();
    QUERN_ASSIGN(arg.value, value(depth));
    return arg;
  }

  Result<Value> value(int depth) {
    if (is_digit(peek()) || peek() == '-' || peek() == '+' || peek() == '.') return number();
    QUERN_ASSIGN(Call call, this->call(depth + 1));
    Value value;
    if (!call.args.empty()) {
      value.kind = Value::Kind::kCall;
      value.call.push_back(std::move(call));
      return value;
    }
    value.text = std::move(call.name);
    skip_space();
    while (take('+')) {
      skip_space();
      QUERN_ASSIGN(const std::string next, name());
      value.text += '+';
      value.text += next;
      skip_space();
    }
    return value;
  }

  Result<Value> number() {
    const size_t begin = position_;
    if (peek() == '+') ++position_;
    double parsed = 0;
    const char* first = text_.data() + position_;
    const auto [end, problem] = std::from_chars(first, text_.data() + text_.size(), parsed);
    if (problem != std::errc() || !std::isfinite(parsed)) {
      position_ = begin;
      return fail("expected a number");
    }
    position_ += static_cast<size_t>(end - first);
    if ((peek() == 'x' || peek() == ':') && position_ + 1 < text_.size() &&
        is_digit(text_[position_ + 1])) {
      ++position_;
      while (is_digit(peek())) ++position_;
      return word_value(text_.substr(begin, position_ - begin));
    }
    return number_value(parsed);
  }

  Result<std::vector<WhereTerm>> where() {
    std::vector<WhereTerm> terms;
    bool add = true;
    for (;;) {
      skip_space();
      WhereTerm term;
      term.add = add;
      QUERN_ASSIGN(term.name, name());
      if (peek() == '[') QUERN_TRY(range(term));
      terms.push_back(std::move(term));
      skip_space();
      if (take('+')) {
        add = true;
      } else if (take('-')) {
        add = false;
      } else {
        return terms;
      }
    }
  }

  Status range(WhereTerm& term) {
    take('[');
    QUERN_ASSIGN(term.first, index());
    if (!take(':')) return fail("expected ':'");
    QUERN_ASSIGN(term.last, index());
    if (!take(']')) return fail("expected ']'");
    if (term.first >= term.last) return fail("the range is empty");
    return {};
  }

  Result<int64_t> index() {
    if (!is_digit(peek())) return fail("expected a layer index");
    int64_t value = 0;
    while (is_digit(peek())) {
      value = value * 10 + (peek() - '0');
      if (value > kMaxLayer) return fail("the layer index is too large");
      ++position_;
    }
    return value;
  }

  std::string_view text_;
  size_t position_ = 0;
};

}  // namespace

bool Value::operator==(const Value&) const = default;
bool Arg::operator==(const Arg&) const = default;
bool Call::operator==(const Call&) const = default;

Result<std::vector<Stage>> parse_recipe(std::string_view text) {
  if (text.size() > kMaxText) return usage_error("recipe: longer than {} bytes", kMaxText);
  return Parser(text).recipe();
}

Result<Call> parse_call(std::string_view text) {
  if (text.size() > kMaxText) return usage_error("recipe: longer than {} bytes", kMaxText);
  return Parser(text).whole_call();
}

std::string print(const Value& value) {
  if (value.kind == Value::Kind::kNumber) {
    // Shortest form that reads back as the same double, without an exponent's '+'.
    char buffer[64];
    const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value.number).ptr;
    return {buffer, end};
  }
  return value.kind == Value::Kind::kCall ? print(value.call[0]) : value.text;
}

std::string print(const Call& call) {
  std::string text = call.name;
  if (call.args.empty()) return text;
  text += '(';
  for (size_t i = 0; i < call.args.size(); ++i) {
    if (i > 0) text += ", ";
    if (!call.args[i].name.empty()) text += call.args[i].name + "=";
    text += print(call.args[i].value);
  }
  return text + ')';
}

std::string print(const std::vector<WhereTerm>& where) {
  std::string text;
  for (const WhereTerm& term : where) {
    if (!text.empty()) text += term.add ? '+' : '-';
    text += term.name;
    if (term.last > 0) text += fmt::format("[{}:{}]", term.first, term.last);
  }
  return text;
}

std::string print(const std::vector<Stage>& recipe) {
  std::string text;
  for (const Stage& stage : recipe) {
    if (!text.empty()) text += " | ";
    text += print(stage.call);
    if (!stage.where.empty()) text += " @ " + print(stage.where);
  }
  return text;
}

Value number_value(double number) {
  Value value;
  value.kind = Value::Kind::kNumber;
  value.number = number;
  return value;
}

Value word_value(std::string_view word) {
  Value value;
  value.text = word;
  return value;
}

}  // namespace quern::spec
