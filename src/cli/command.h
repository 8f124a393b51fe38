// SPDX-License-Identifier: Apache-2.0
// One command of the program: declares its options on a subcommand and gives back what to do once
// they are parsed. Results go to stdout, everything else to stderr.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "eval/evaluate.h"
#include "formats/json.h"
#include "model/linear.h"

namespace quern::cli {

using Action = std::function<Status()>;

struct Command {
  const char* name;
  const char* summary;
  Action (*declare)(CLI::App& app);
};

Action declare_compress(CLI::App& app);
Action declare_eval(CLI::App& app);
Action declare_compare(CLI::App& app);
Action declare_inspect(CLI::App& app);
Action declare_run(CLI::App& app);
Action declare_list(CLI::App& app);
Action declare_bench(CLI::App& app);
Action declare_calibrate_kv(CLI::App& app);

// Options that several commands share.
void add_model(CLI::App& app, std::string& model);              // positional or -m
void add_threads(CLI::App& app);                                // -t, --pin, applied by parsing
void add_activations(CLI::App& app, Activations& activations);  // --activations, int8 unless given
void add_json(CLI::App& app, bool& json);
KvCacheRecipe usual_kv(Activations activations);  // bfloat16 beside 8-bit activations, else halves
// --kv, and --kv-calibration for a cache that is to be planned
void add_kv(CLI::App& app, const Activations& activations, KvCacheRecipe& kv,
            std::string& calibration);
// Plans a cache that leaves its layers to a planner, and shows the plan (cli/plan_cache.cc).
enum class Output : uint8_t { kText, kQuiet };
Status plan_cache(const Model& model, const std::string& calibration, Output output,
                  KvCacheRecipe& kv);
// --text, --ctx, --windows, --protocol
void add_evaluation(CLI::App& app, std::string& text, EvalOptions& options);

// True once the user pressed Ctrl-C; commands stop at the next safe point. A second one kills.
bool interrupted();
void watch_interrupts();

// A line on stderr that is redrawn: "[#####.....] 42 %  what  eta 0:12". Silent when stderr is no
// terminal (then a line per tenth) or when `is_quiet`.
class ProgressBar {
 public:
  explicit ProgressBar(bool is_quiet) : is_quiet_(is_quiet) {}
  ~ProgressBar() { clear(); }
  void show(double done, const std::string& what);
  void note(const std::string& line);  // a line that stays
  void clear();

 private:
  bool is_quiet_;
  bool is_drawn_ = false;
  int last_tenth_ = -1;
  double start_ = -1, last_drawn_ = -1;
};

std::string human_bytes(double bytes);      // "3.8 GB"
std::string human_seconds(double seconds);  // "1:23"

// The words as a shell takes them, quoted where they must be; and the line this program was started
// with.
std::string shell_words(std::span<const std::string> words);
std::string command_line();

// Texts between semicolons, without what is empty.
std::vector<std::string> split_texts(const std::string& text);

// The share of the text that stood in what the model was calibrated on, and a warning where that is
// more than chance has in common; nothing where the model does not say.
std::optional<double> calibration_overlap(const ModelFiles& files, std::span<const Token> text);
std::string overlap_warning(std::optional<double> share);  // empty: none

// The text of a file, or of the bundled evaluation text when `path` is empty.
Result<std::string> evaluation_text(const std::string& path);

}  // namespace quern::cli
