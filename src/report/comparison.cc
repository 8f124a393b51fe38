// SPDX-License-Identifier: Apache-2.0
#include "report/comparison.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>

#include "base/file.h"
#include "base/parallel.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

// Matrices of the decoder and the two ends; norms and biases are next to nothing.
Json matrices_json(const std::vector<TensorCost>& tensors) {
  Json list = Json::array();
  for (const TensorCost& tensor : tensors) {
    if (!tensor.id) continue;
    const WeightId& id = *tensor.id;
    if (!is_linear(id.role) && id.role != Role::kEmbed) continue;
    Json entry = {{"layer", id.layer},     {"role", role_name(id.role)},
                  {"kind", tensor.kind},   {"weights", tensor.n_weights},
                  {"bytes", tensor.bytes}, {"bits", tensor.bpw()}};
    if (id.expert >= 0) entry["expert"] = id.expert;
    if (tensor.error >= 0) entry["error"] = tensor.error;
    list.push_back(std::move(entry));
  }
  return list;
}

Json samples_json(const std::vector<ComparedSample>& samples) {
  Json list = Json::array();
  for (const ComparedSample& sample : samples) {
    list.push_back({{"prompt", sample.prompt},
                    {"text", sample.text},
                    {"base_text", sample.base_text},
                    {"agreed_tokens", sample.n_agreed}});
  }
  return list;
}

// The value behind "model name :" of the first processor.
std::string cpu_name() {
  const auto text = read_file("/proc/cpuinfo");
  if (!text) return "unknown";
  const size_t at = text->find("model name");
  if (at == std::string::npos) return "unknown";
  const size_t colon = text->find(':', at), end = text->find('\n', at);
  if (colon == std::string::npos || end == std::string::npos || end < colon + 2) return "unknown";
  return text->substr(colon + 2, end - colon - 2);
}

}  // namespace

void rank(std::vector<ComparedModel>& rows) {
  std::stable_sort(rows.begin() + 1, rows.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  for (ComparedModel& row : rows) {
    row.is_best = std::none_of(rows.begin(), rows.end(), [&](const ComparedModel& other) {
      const bool no_worse = other.bytes <= row.bytes && other.eval.kl_mean <= row.eval.kl_mean;
      return no_worse && (other.bytes < row.bytes || other.eval.kl_mean < row.eval.kl_mean);
    });
  }
}

Json to_json(const EvalResult& result) {
  Json json = {{"ppl", result.ppl},
               {"nll", result.nll},
               {"stderr", result.ppl_stderr},
               {"nll_stderr", result.nll_stderr},
               {"tokens", result.n_tokens},
               {"seconds", result.seconds},
               {"tokens_per_second", result.tokens_per_second},
               {"kv_bytes", result.kv_bytes}};
  if (result.has_base) {
    json["kl_mean"] = result.kl_mean;
    json["kl_stderr"] = result.kl_stderr;
    json["kl_p99"] = result.kl_p99;
    json["top1"] = result.top1;
  }
  if (result.has_baseline) {
    json["kl_least"] = result.kl_least;
    json["kl_draw_stderr"] = result.kl_draw_stderr;
    json["base_ppl"] = result.base_ppl;
  }
  return json;
}

Json to_json(const ComparedModel& row) {
  Json json = to_json(row.eval);
  json["recipe"] = row.recipe;
  json["bytes"] = row.bytes;
  json["bpw"] = row.bpw;
  json["linear_bpw"] = row.linear_bpw;
  if (row.compress_seconds > 0) json["compress_seconds"] = row.compress_seconds;
  json["prompt_tokens_per_second"] = row.prompt_rate;
  json["generated_tokens_per_second"] = row.generated_rate;
  json["decode_weights_per_second"] = row.decode_rate;
  json["pareto"] = row.is_best;
  json["eval_command"] = valid_utf8(row.eval_command);
  if (!row.compress_command.empty()) json["compress_command"] = valid_utf8(row.compress_command);
  if (!row.calibration.empty()) json["calibration"] = row.calibration;
  if (!row.sample.empty()) json["sample"] = row.sample;
  if (!row.tasks.empty()) json["tasks"] = row.tasks;
  return json;
}

Json to_json(const Comparison& comparison) {
  Json rows = Json::array();
  for (const ComparedModel& row : comparison.rows) {
    Json entry = to_json(row);
    entry["matrices"] = matrices_json(row.tensors);
    if (!row.output_errors.empty()) entry["output_errors"] = row.output_errors;
    if (row.alone) {
      entry["layer_kl"] = row.alone->layers;
      if (row.alone->ends) entry["ends_kl"] = *row.alone->ends;
    }
    if (!row.samples.empty()) entry["samples"] = samples_json(row.samples);
    rows.push_back(std::move(entry));
  }
  return {{"quern", QUERN_VERSION},
          {"created", comparison.created},
          {"command", valid_utf8(comparison.command)},
          {"machine", comparison.machine},
          {"model", comparison.model},
          {"evaluation", comparison.evaluation},
          {"prompt", valid_utf8(comparison.prompt)},
          {"warnings", comparison.warnings},
          {"rows", std::move(rows)}};
}

Json describe_machine() {
  Json machine = {{"cpu", valid_utf8(cpu_name())},
                  {"processors", ::sysconf(_SC_NPROCESSORS_ONLN)},
                  {"threads", thread_count()},
                  {"isa", isa_name(best_isa())},
                  {"memory_bytes", ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE)}};
  utsname system{};
  if (::uname(&system) == 0) {
    machine["system"] = fmt::format("{} {} {}", system.sysname, system.release, system.machine);
  }
  return machine;
}

}  // namespace quern
