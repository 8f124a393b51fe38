// SPDX-License-Identifier: Apache-2.0
#include "transforms/operator.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace quern {

#define QUERN_OPERATOR(name) extern const OperatorInfo name##_operator_info;
#include "transforms/operators.inc"
#undef QUERN_OPERATOR

std::span<const OperatorInfo> operators() {
  static const std::vector<OperatorInfo> rows = {
#define QUERN_OPERATOR(name) name##_operator_info,
#include "transforms/operators.inc"
#undef QUERN_OPERATOR
  };
  return rows;
}

Result<OperatorPtr> read_operator(const Json& json, const FindTensor& find) {
  if (!json.is_object()) return error("basis: expected an object, got {}", json.type_name());
  QUERN_ASSIGN(const std::string name, json_string(json, "op"));
  std::vector<std::string_view> names;
  for (const OperatorInfo& row : operators()) {
    if (row.name == name) return row.read(json, find);
    names.push_back(row.name);
  }
  return error("basis: no operator '{}'; the operators are {}", name, fmt::join(names, ", "));
}

}  // namespace quern
