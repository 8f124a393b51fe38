// SPDX-License-Identifier: Apache-2.0
// One model and what several recipes made of it: everything that a table, a plot or a page shows,
// measured elsewhere. What each form prints comes from here, so that all say the same.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "calib/swapped_layers.h"
#include "eval/evaluate.h"
#include "formats/json.h"
#include "report/tensor_costs.h"

namespace quern {

struct ComparedSample {
  std::string prompt, text, base_text;  // UTF-8
  int64_t n_agreed = 0;                 // tokens before the first that differs
};

struct ComparedModel {
  std::string recipe;  // as its name or canonical text; "original"
  uint64_t bytes = 0;  // of weight files
  double bpw = 0, linear_bpw = 0;
  double compress_seconds = 0;  // 0: not known
  EvalResult eval;
  // Tokens a second, weights a second; 0: not timed, or nothing coded.
  double prompt_rate = 0, generated_rate = 0, decode_rate = 0;
  bool is_best = false;  // nothing is both smaller and closer to the original
  std::string sample;    // continuation of the prompt
  std::vector<ComparedSample> samples;
  std::vector<TensorCost> tensors;
  std::vector<double> output_errors;   // of the stream behind each layer, relative; -1: not known
  std::optional<SwappedLayers> alone;  // what each layer costs alone; nothing: not measured
  Json calibration = Json::object();   // {"text", "tokens", "digest"}; empty: none
  Json tasks = Json::array();          // one object a task, as docs/evaluation.md says
  std::string compress_command, eval_command;
};

struct Comparison {
  std::string created;  // ISO 8601, UTC
  std::string command;
  Json machine = Json::object(), model = Json::object(), evaluation = Json::object();
  std::string prompt;
  std::vector<std::string> warnings;
  std::vector<ComparedModel> rows;  // the original first
  bool has_speed = false;
};

// Puts rows behind the first in order of size, the largest first, and marks the best.
void rank(std::vector<ComparedModel>& rows);

Json to_json(const EvalResult& result);
Json to_json(const ComparedModel& row);                 // numbers of the table, sample and tasks
Json to_json(const Comparison& comparison);             // all there is
std::string to_csv(const Comparison& comparison);       // a line of names, then one a model
std::string to_markdown(const Comparison& comparison);  // a page: table, tasks, conditions
std::string to_table(const Comparison& comparison);     // for a terminal

// CPU, threads, instruction set, memory and system.
Json describe_machine();

}  // namespace quern
