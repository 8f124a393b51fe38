// SPDX-License-Identifier: Apache-2.0
// The text form of everything a user can name: codecs, solvers, transforms, recipes.
//
//   recipe = stage { "|" stage }        stage = call [ "@" where ]
//   call   = name [ "(" arg { "," arg } ")" ]; words of a name may be joined by '-'
//   arg    = value | name "=" value     value = number | 2x8 | 2:4 | name { "+" name } | call
//   where  = term { ("+" | "-") term }  term  = name | "layers[" first ":" last "]"
//
// In a recipe file a line is a stage and "#" starts a comment. One parser and one printer serve
// recipes, file headers and tables. Printing is canonical and parses back to an equal tree.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern::spec {

struct Call;

// number: `number` and its spelling; word: `text` (also "2x8", "2:4", "a+b"); call: `call[0]`.
struct Value {
  enum class Kind : uint8_t { kNumber, kWord, kCall };
  Kind kind = Kind::kWord;
  double number = 0;
  std::string text;
  std::vector<Call> call;
  bool operator==(const Value&) const;
};

struct Arg {
  std::string name;  // empty: positional
  Value value;
  bool operator==(const Arg&) const;
};

struct Call {
  std::string name;
  std::vector<Arg> args;
  bool operator==(const Call&) const;
};

struct WhereTerm {
  bool add = true;              // false: taken away
  std::string name;             // "attn", "down", "layers"
  int64_t first = 0, last = 0;  // name[first:last], of these layers, last exclusive; else 0, 0
  bool has_layer(int64_t layer) const { return last == 0 || (layer >= first && layer < last); }
  bool operator==(const WhereTerm&) const = default;
};

struct Stage {
  Call call;
  std::vector<WhereTerm> where;  // empty: the stage's default
  bool operator==(const Stage&) const = default;
};

// Errors are usage errors with the column. Nesting is at most 16 deep, text at most 64 KiB.
Result<std::vector<Stage>> parse_recipe(std::string_view text);
Result<Call> parse_call(std::string_view text);

std::string print(const Value& value);
std::string print(const Call& call);
std::string print(const std::vector<WhereTerm>& where);
std::string print(const std::vector<Stage>& recipe);

Value number_value(double number);
Value word_value(std::string_view word);

}  // namespace quern::spec
