// SPDX-License-Identifier: Apache-2.0
// Any bytes as a file of task items: refused, or items that can be asked and judged.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "eval/task_items.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const auto task = parse_task({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!task) {
    QUERN_CHECK(!task.error().message.empty());
    return 0;
  }
  QUERN_CHECK(!task->items.empty());
  for (const TaskItem& item : task->items) {
    QUERN_CHECK(!item.requests.empty() && item.gold >= 0);
    QUERN_CHECK(item.gold < static_cast<int64_t>(item.requests.size()));
    QUERN_CHECK((task->kind == TaskKind::kTarget) <= (item.requests.size() == 1));
    QUERN_CHECK(item.lengths.size() ==
                (task->kind == TaskKind::kChoices ? item.requests.size() : 0));
    for (const TaskRequest& request : item.requests) QUERN_CHECK(!request.continuation.empty());
  }
  return 0;
}
