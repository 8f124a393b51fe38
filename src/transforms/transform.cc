// SPDX-License-Identifier: Apache-2.0
#include "transforms/transform.h"

#include "spec/registry.h"

namespace quern {

#define QUERN_TRANSFORM(name) extern const TransformInfo name##_transform_info;
#include "transforms/list.inc"
#undef QUERN_TRANSFORM

std::span<const TransformInfo> transforms() {
  static const TransformInfo rows[] = {
#define QUERN_TRANSFORM(name) name##_transform_info,
#include "transforms/list.inc"
#undef QUERN_TRANSFORM
  };
  return rows;
}

const TransformInfo* find_transform(std::string_view name) {
  return spec::find(transforms(), name);
}

}  // namespace quern
