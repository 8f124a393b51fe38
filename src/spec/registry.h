// SPDX-License-Identifier: Apache-2.0
// Methods of one kind by name. A row has at least `name`, `params`, and `make`, which gives a
// Result of what its parameters say.
#pragma once

#include <fmt/ranges.h>

#include <span>
#include <string_view>
#include <vector>

#include "spec/params.h"

namespace quern::spec {

// The row of that name, or null.
template <class Row>
const Row* find(std::span<const Row> rows, std::string_view name) {
  for (const Row& row : rows) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

// What `call` names, with the parameters it gives. `kind` is what a row is, for the error.
template <class Row>
auto make(std::span<const Row> rows, const Call& call, std::string_view kind)
    -> decltype(rows[0].make(Params())) {
  const Row* row = find(rows, call.name);
  if (row == nullptr) {
    std::vector<std::string_view> names;
    for (const Row& other : rows) names.push_back(other.name);
    return usage_error("no {} '{}'; expected one of {}", kind, call.name, fmt::join(names, ", "));
  }
  QUERN_ASSIGN(const Params params, Params::bind(call, row->params));
  return row->make(params);
}

}  // namespace quern::spec
