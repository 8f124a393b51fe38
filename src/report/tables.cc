// SPDX-License-Identifier: Apache-2.0
// A comparison in lines of text: CSV, Markdown, and columns for a terminal.
#include <algorithm>

#include "report/comparison.h"

namespace quern {
namespace {

// A field of CSV: in quotes, quotes doubled.
std::string quoted(const std::string& text) {
  std::string field = "\"";
  for (const char c : text) {
    if (c == '"') field += '"';
    field += c;
  }
  return field + '"';
}

// Text in a cell of a Markdown table, or in a line of its own: nothing in it is markup.
std::string plain(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n' || c == '\r') {
      out += ' ';
      continue;
    }
    if (std::string_view("\\`*_{}[]<>&|#~!").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

// A block of code that no run of backticks in it ends.
std::string code_block(const std::string& text) {
  size_t longest = 2, run = 0;
  for (const char c : text) {
    run = c == '`' ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  const std::string fence(longest + 1, '`');
  return fmt::format("{}\n{}\n{}\n", fence, text, fence);
}

// Percent of accuracy with its standard error.
std::string accuracy(const Json& task, const char* key) {
  if (!task.contains(key)) return "";
  return fmt::format("{:.2f} ± {:.2f}", 100 * task[key].get<double>(),
                     100 * task[std::string(key) + "_stderr"].get<double>());
}

std::string tasks_markdown(const Comparison& comparison) {
  std::string text =
      "\n## Tasks\n\n| task | recipe | items | acc, % | acc_norm, % | against the original | p |\n"
      "|---|---|---|---|---|---|---|\n";
  for (const ComparedModel& row : comparison.rows) {
    for (const Json& task : row.tasks) {
      text += fmt::format(
          "| {} | {} | {} | {} | {} | {} | {} |\n", plain(task["task"].get<std::string>()),
          plain(row.recipe), task["items"].get<int64_t>(), accuracy(task, "acc"),
          accuracy(task, "acc_norm"), accuracy(task, "acc_difference"),
          task.contains("p_value") ? fmt::format("{:.2g}", task["p_value"].get<double>()) : "");
    }
  }
  return text;
}

// Of the rows of which it is known; 0: of none.
int layers_alone(const Comparison& comparison) {
  size_t n_layers = 0;
  for (const ComparedModel& row : comparison.rows) {
    if (row.alone) n_layers = std::max(n_layers, row.alone->layers.size());
  }
  return static_cast<int>(n_layers);
}

// What a layer costs alone, -1: the ends; empty where that is not known.
std::string alone_text(const ComparedModel& row, int layer) {
  if (!row.alone) return "";
  const std::vector<double>& layers = row.alone->layers;
  if (layer < 0) return row.alone->ends ? fmt::format("{:.3g}", *row.alone->ends) : "";
  const auto at = static_cast<size_t>(layer);
  return at < layers.size() ? fmt::format("{:.3g}", layers[at]) : "";
}

std::string layers_markdown(const Comparison& comparison, int n_layers) {
  std::string text = "\n## KL of each layer alone\n\n| layer |", rule = "|---|";
  for (const ComparedModel& row : comparison.rows) {
    if (!row.alone) continue;
    text += fmt::format(" {} |", plain(row.recipe));
    rule += "---|";
  }
  text += "\n" + rule + "\n";
  for (int layer = -1; layer < n_layers; ++layer) {
    text += layer < 0 ? "| ends |" : fmt::format("| {} |", layer);
    for (const ComparedModel& row : comparison.rows) {
      if (row.alone) text += fmt::format(" {} |", alone_text(row, layer));
    }
    text += "\n";
  }
  return text + fmt::format(
                    "\nOf the original with only this layer from the compressed model, nats per "
                    "token on {} tokens; ends: embedding and head.\n",
                    comparison.evaluation.value("layer_tokens", int64_t{0}));
}

bool has_tasks(const ComparedModel& row) { return !row.tasks.empty(); }

std::string tasks_table(const Comparison& comparison, size_t width) {
  std::string text = fmt::format("\n  {:{}} {:<24} {:>6} {:>14} {:>14}\n", "recipe", width, "task",
                                 "items", "acc, %", "acc_norm, %");
  for (const ComparedModel& row : comparison.rows) {
    for (const Json& task : row.tasks) {
      text += fmt::format("  {:{}} {:<24} {:>6} {:>14} {:>14}", row.recipe, width,
                          task["task"].get<std::string>(), task["items"].get<int64_t>(),
                          accuracy(task, "acc"), accuracy(task, "acc_norm"));
      if (task.contains("p_value")) {
        text +=
            fmt::format("  {:+.2f} to the original, p = {:.2g}",
                        100 * task["acc_difference"].get<double>(), task["p_value"].get<double>());
      }
      text += "\n";
    }
  }
  return text;
}

std::string conditions_markdown(const Comparison& comparison) {
  std::string text = "\n## How it was measured\n\n";
  for (const auto& [key, value] : comparison.evaluation.items()) {
    text += fmt::format("- {}: {}\n", key,
                        plain(value.is_string() ? value.get<std::string>() : value.dump()));
  }
  for (const auto& [key, value] : comparison.machine.items()) {
    text += fmt::format("- {}: {}\n", key,
                        plain(value.is_string() ? value.get<std::string>() : value.dump()));
  }
  text += "\n" + code_block(valid_utf8(comparison.command));
  for (const ComparedModel& row : comparison.rows) {
    text += fmt::format("\n{}", plain(row.recipe));
    if (!row.calibration.empty()) {
      text +=
          fmt::format(", calibrated on {}, {} tokens", plain(row.calibration.value("text", "?")),
                      row.calibration.value("tokens", 0));
    }
    text += ":\n\n" + code_block(valid_utf8(row.compress_command.empty()
                                                ? row.eval_command
                                                : row.compress_command + "\n" + row.eval_command));
  }
  return text;
}

}  // namespace

std::string to_csv(const Comparison& comparison) {
  std::string csv =
      "recipe,bytes,bpw,linear_bpw,compress_seconds,ppl,stderr,kl_mean,kl_p99,top1,"
      "prompt_tokens_per_second,generated_tokens_per_second,decode_weights_per_second,pareto";
  const int n_layers = layers_alone(comparison);
  if (n_layers > 0) csv += ",kl_ends";
  for (int layer = 0; layer < n_layers; ++layer) csv += fmt::format(",kl_layer_{}", layer);
  csv += "\n";
  for (const ComparedModel& row : comparison.rows) {
    csv += fmt::format(
        "{},{},{:.6f},{:.6f},{:.1f},{:.6f},{:.6f},{:.6f},{:.6f},{:.6f},{:.2f},{:.2f},{:.3g},{}",
        quoted(row.recipe), row.bytes, row.bpw, row.linear_bpw, row.compress_seconds, row.eval.ppl,
        row.eval.ppl_stderr, row.eval.kl_mean, row.eval.kl_p99,
        row.eval.has_base ? row.eval.top1 : 1.0, row.prompt_rate, row.generated_rate,
        row.decode_rate, row.is_best ? 1 : 0);
    for (int layer = n_layers > 0 ? -1 : 0; layer < n_layers; ++layer) {
      csv += "," + alone_text(row, layer);
    }
    csv += "\n";
  }
  return csv;
}

std::string to_markdown(const Comparison& comparison) {
  std::string text = fmt::format("# {}\n\n", plain(comparison.model.value("path", "")));
  for (const std::string& warning : comparison.warnings) {
    text += fmt::format("> Warning: {}\n\n", plain(warning));
  }
  text += "| | recipe | bytes | bpw | linear | ppl | KL | KL at 99 % | top-1, % |";
  std::string rule = "|---|---|---|---|---|---|---|---|---|";
  if (comparison.has_speed) {
    text += " prompt/s | gen/s |";
    rule += "---|---|";
  }
  text += "\n" + rule + "\n";
  for (const ComparedModel& row : comparison.rows) {
    text += fmt::format("| {} | {} | {} | {:.3f} | {:.3f} | {:.3f} ± {:.3f} |",
                        row.is_best ? "best" : "", plain(row.recipe), row.bytes, row.bpw,
                        row.linear_bpw, row.eval.ppl, row.eval.ppl_stderr);
    text += row.eval.has_base
                ? fmt::format(" {:.5f} ± {:.5f} | {:.4f} | {:.2f} |", row.eval.kl_mean,
                              row.eval.kl_stderr, row.eval.kl_p99, 100 * row.eval.top1)
                : " | | |";
    if (comparison.has_speed) {
      text += fmt::format(" {:.0f} | {:.0f} |", row.prompt_rate, row.generated_rate);
    }
    text += "\n";
  }
  text +=
      "\nbest: nothing is both smaller and closer to the original; KL: nats per token to the "
      "original; bpw: all bytes of the weight files over all parameters.\n";
  if (std::any_of(comparison.rows.begin(), comparison.rows.end(), has_tasks)) {
    text += tasks_markdown(comparison);
  }
  const int n_layers = layers_alone(comparison);
  if (n_layers > 0) text += layers_markdown(comparison, n_layers);
  return text + conditions_markdown(comparison);
}

std::string to_table(const Comparison& comparison) {
  size_t width = 8;
  for (const ComparedModel& row : comparison.rows) width = std::max(width, row.recipe.size());
  std::string text = fmt::format(
      "  {:{}} {:>7} {:>7} {:>11} {:>9} {:>9} {:>7}{}\n", "recipe", width, "bpw", "linear", "bytes",
      "ppl", "KL", "top-1",
      comparison.has_speed ? fmt::format(" {:>9} {:>9} {:>9}", "prompt/s", "gen/s", "decode/s")
                           : "");
  for (const ComparedModel& row : comparison.rows) {
    text += fmt::format("{} {:{}} {:7.3f} {:7.3f} {:11} {:9.3f}", row.is_best ? '*' : ' ',
                        row.recipe, width, row.bpw, row.linear_bpw, row.bytes, row.eval.ppl);
    text += row.eval.has_base
                ? fmt::format(" {:9.5f} {:6.2f}%", row.eval.kl_mean, 100 * row.eval.top1)
                : fmt::format(" {:>9} {:>7}", "-", "-");
    if (comparison.has_speed) {
      text +=
          fmt::format(" {:9.0f} {:9.0f} {:>9}", row.prompt_rate, row.generated_rate,
                      row.decode_rate > 0 ? fmt::format("{:.2f} G", row.decode_rate / 1e9) : "-");
    }
    text += "\n";
  }
  text += fmt::format(
      "bpw: all bytes of the weight files over all parameters; linear: of the "
      "layers' matrices;\n"
      "KL: nats per token to the original with a plain cache; *: nothing smaller is "
      "as close to the original.\n{}",
      comparison.has_speed ? "decode/s: weights of the coded matrices decoded "
                             "alone, on all threads.\n"
                           : "");
  if (std::any_of(comparison.rows.begin(), comparison.rows.end(), has_tasks)) {
    text += tasks_table(comparison, width);
  }
  return text;
}

}  // namespace quern
