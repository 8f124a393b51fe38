// SPDX-License-Identifier: Apache-2.0
#include "model/archs/arch.h"

#include "model/archs/config_reader.h"

namespace quern {

#define QUERN_ARCH(name) extern const Arch arch_##name;
#include "model/archs/list.inc"
#undef QUERN_ARCH

std::span<const Arch> archs() {
  static const Arch kRows[] = {
#define QUERN_ARCH(name) arch_##name,
#include "model/archs/list.inc"
#undef QUERN_ARCH
  };
  return kRows;
}

namespace {

std::string known_archs() {
  std::string names;
  for (const Arch& arch : archs()) {
    names += names.empty() ? "" : ", ";
    names += arch.name;
  }
  return names;
}

}  // namespace

Result<const Arch*> find_arch(const Json& config) {
  ConfigReader reader(config);
  std::string architecture;
  if (const Json* list = reader.array("architectures"); list != nullptr && !list->empty()) {
    if (list->front().is_string()) architecture = list->front().get<std::string>();
  }
  const std::string model_type = reader.text_or("model_type", "");
  QUERN_TRY(reader.status());
  for (const Arch& arch : archs()) {
    for (std::string_view name : arch.architectures) {
      if (name == architecture) return &arch;
    }
  }
  if (architecture.empty()) {
    for (const Arch& arch : archs()) {
      if (arch.name == model_type) return &arch;
    }
  }
  return error(
      "config.json: architecture '{:.60}' (model_type '{:.60}') is not supported; expected "
      "one of {}",
      architecture, model_type, known_archs());
}

}  // namespace quern
