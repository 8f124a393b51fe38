// SPDX-License-Identifier: Apache-2.0
// Zero-shot tasks as `eval` and `compare` run them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "eval/tasks.h"

namespace quern::cli {

struct TaskRequestOptions {
  std::vector<std::string> files;
  int64_t limit = 0;
  bool bos = false;
};

// --tasks, --limit, --bos
void add_tasks(CLI::App& app, TaskRequestOptions& o, const std::string& what);

Result<std::vector<Task>> read_tasks(const TaskRequestOptions& o);

// `label` stands beside the bar.
Result<TaskResult> run_task(const Model& model, const Tokenizer& tokenizer, const Task& task,
                            const KvCacheRecipe& kv, bool bos, const std::string& label,
                            ProgressBar& bar);

// Keys as docs/evaluation.md lists them; with `base`, those of the paired comparison too.
Json task_json(const Task& task, const TaskResult& result, const TaskResult* base);

}  // namespace quern::cli
