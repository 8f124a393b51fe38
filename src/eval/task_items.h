// SPDX-License-Identifier: Apache-2.0
// Items of zero-shot tasks, read from files of one JSON object a line, in any of these forms:
//
//   {"context": C, "choices": [A, ...], "gold": i}             answers to one context
//   {"contexts": [C, ...], "continuation": A, "gold": i}       which context is it an answer to
//   {"context": C, "target": T}                                one answer, right if it is the
//                                                              likeliest at every token
//   {"doc": ..., "target": ..., "arguments": ...}              a sample that the Evaluation Harness
//                                                              (lm-eval --log_samples) wrote
//
// What is asked of a model is the likelihood of `continuation` behind `context`. Of the first two
// forms the answer follows a space.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace quern {

enum class TaskKind : uint8_t {
  kChoices,   // one context, the likeliest continuation is picked
  kContexts,  // one continuation, the context under which it is likeliest is picked
  kTarget,    // one continuation
};

struct TaskRequest {
  std::string context, continuation;
};

struct TaskItem {
  std::vector<TaskRequest> requests;
  // Characters of every choice, by which its log-likelihood is divided for acc_norm; kChoices only.
  std::vector<int64_t> lengths;
  int64_t gold = 0;
};

struct Task {
  std::string name;
  TaskKind kind = TaskKind::kChoices;
  std::vector<TaskItem> items;
};

// `where` names the source in errors. At most `limit` items, 0: all. Fails where a line is none of
// these forms, or of another kind than those before.
Result<Task> parse_task(std::string_view lines, std::string_view where, int64_t limit = 0);

// Named after the file, without its extension.
Result<Task> read_task(const std::string& path, int64_t limit = 0);

}  // namespace quern
