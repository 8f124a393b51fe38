// SPDX-License-Identifier: Apache-2.0
#include "cli/task_runs.h"

#include <cmath>

namespace quern::cli {
namespace {

Json result_json(const Task& task, const TaskResult& result) {
  Json json = {{"items", result.answers.size()},
               {"acc", result.accuracy.value},
               {"acc_stderr", result.accuracy.stderr_of},
               {"seconds", result.seconds}};
  if (task.kind == TaskKind::kChoices) {
    json["acc_norm"] = result.accuracy_norm.value;
    json["acc_norm_stderr"] = result.accuracy_norm.stderr_of;
  }
  if (task.kind == TaskKind::kTarget) {
    json["ppl"] = std::exp(-result.log_likelihood.value);
    json["ppl_stderr"] = std::exp(-result.log_likelihood.value) * result.log_likelihood.stderr_of;
  }
  return json;
}

}  // namespace

void add_tasks(CLI::App& app, TaskRequestOptions& o, const std::string& what) {
  app.add_option("--tasks", o.files,
                 what + ": files of one JSON object a line, as docs/evaluation.md says")
      ->delimiter(',');
  app.add_option("--limit", o.limit, "items of each task; default: all")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  app.add_flag("--bos", o.bos, "put BOS before every context");
}

Result<std::vector<Task>> read_tasks(const TaskRequestOptions& o) {
  std::vector<Task> tasks;
  for (const std::string& file : o.files) {
    QUERN_ASSIGN(Task task, read_task(file, o.limit));
    tasks.push_back(std::move(task));
  }
  return tasks;
}

Result<TaskResult> run_task(const Model& model, const Tokenizer& tokenizer, const Task& task,
                            const KvCacheRecipe& kv, bool bos, const std::string& label,
                            ProgressBar& bar) {
  const TaskOptions options{bos, kv, [&](double done) {
                              bar.show(done, label);
                              return !interrupted();
                            }};
  return quern::run_task(model, tokenizer, task, options);
}

Json task_json(const Task& task, const TaskResult& result, const TaskResult* base) {
  Json json = result_json(task, result);
  json["task"] = valid_utf8(task.name);
  if (base == nullptr) return json;
  const PairedAccuracy paired = compare_paired(*base, result);
  json["base"] = result_json(task, *base);
  json["acc_difference"] = paired.difference.value;
  json["acc_difference_stderr"] = paired.difference.stderr_of;
  json["won"] = paired.n_won;
  json["lost"] = paired.n_lost;
  json["p_value"] = paired.p_value;
  return json;
}

}  // namespace quern::cli
