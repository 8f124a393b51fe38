// SPDX-License-Identifier: Apache-2.0
#include "cli/command.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>

#include "base/file.h"
#include "base/parallel.h"
#include "eval/overlap.h"

namespace quern::cli {
namespace {

volatile std::sig_atomic_t interrupt_count = 0;

void on_interrupt(int) {
  interrupt_count = interrupt_count + 1;
  if (interrupt_count > 1) ::_exit(130);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void add_model(CLI::App& app, std::string& model) {
  app.add_option("MODEL,-m,--model", model, "Hugging Face folder or GGUF file")->required();
}

void add_threads(CLI::App& app) {
  app.add_option_function<int>(
         "-t,--threads", [](const int& n) { set_thread_count(n); },
         "threads; 0: one per core. Results do not depend on it")
      ->check(CLI::Range(0, 1024));
  app.add_flag_callback(
      "--pin",
      [] {
        if (const Status pinned = pin_threads(true); !pinned) {
          throw CLI::ValidationError("--pin", pinned.error().message);
        }
      },
      "bind each thread to a core of its own, where nothing else wants the cores");
}

void add_activations(CLI::App& app, Activations& activations) {
  std::map<std::string, Activations> words;
  for (size_t i = 0; i < std::size(kActivationsNames); ++i) {
    words.emplace(kActivationsNames[i], static_cast<Activations>(i));
  }
  activations = Activations::kInt8;
  app.add_option("--activations", activations,
                 "inputs of layers: exact; bf16, weights too, faster over prompts on processors "
                 "with AMX; or int8 where layers are coded, fastest")
      ->transform(CLI::CheckedTransformer(words).description("exact|bf16|int8"))
      ->default_str("int8");
}

void add_evaluation(CLI::App& app, std::string& text, EvalOptions& options) {
  app.add_option("--text,-f", text, "text file; default: the bundled evaluation text");
  app.add_option("--ctx,-c", options.n_ctx, "tokens of a window")->check(CLI::Range(4, 1 << 24));
  app.add_option("--windows,--chunks", options.max_windows, "score only the first windows; 0: all");
  app.add_option_function<std::string>(
         "--protocol",
         [&options](const std::string& name) { options.protocol = *protocol_from_name(name); },
         "bos_windows: BOS before each window, all scored; strided: no BOS; second_half: BOS, "
         "second half scored")
      ->check(CLI::IsMember({"bos_windows", "strided", "second_half"}));
}

void add_json(CLI::App& app, bool& json) {
  app.add_flag("--json", json, "machine-readable output");
}

KvCacheRecipe usual_kv(Activations activations) {
  return KvRecipe::plain(activations == Activations::kExact ? DType::kF16 : DType::kBF16);
}

void add_kv(CLI::App& app, const Activations& activations, KvCacheRecipe& kv,
            std::string& calibration) {
  const auto parse = [&kv](const std::string& text) {
    auto recipe = KvCacheRecipe::parse(text);
    if (!recipe) throw CLI::ValidationError("--kv", recipe.error().message);
    kv = *std::move(recipe);
  };
  const CLI::Option* option = app.add_option_function<std::string>(
      "--kv,--cache-type", parse,
      "how keys and values are kept: bf16, f16, f32, q8, q4, kivi-2bit, ..., kv(k=int(4), "
      "v=int(4)), or auto:2.5, the best within so many bits; default: bf16, with --activations "
      "exact f16");
  app.add_option("--kv-calibration", calibration,
                 "text file that auto measures on; default: text drawn from the model");
  app.parse_complete_callback([option, &activations, &kv] {
    if (option->count() == 0) kv = usual_kv(activations);
  });
}

bool interrupted() { return interrupt_count > 0; }

void watch_interrupts() {
  std::signal(SIGINT, on_interrupt);
  std::signal(SIGTERM, on_interrupt);
}

void ProgressBar::show(double done, const std::string& what) {
  if (is_quiet_) return;
  const double time = now();
  if (start_ < 0) start_ = time;
  if (::isatty(STDERR_FILENO) == 0) {
    const int tenth = static_cast<int>(done * 10);
    if (tenth < last_tenth_) last_tenth_ = -1;  // the next piece of work
    if (tenth > last_tenth_) fmt::print(stderr, "{:3.0f} %  {}\n", done * 100, what);
    last_tenth_ = tenth;
    return;
  }
  if (time - last_drawn_ < 0.1) return;
  last_drawn_ = time;
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(done * kWidth);
  const std::string eta =
      done > 0.02 ? "eta " + human_seconds((time - start_) * (1 - done) / done) : "";
  fmt::print(stderr, "\r\x1b[K[{:#<{}}{:.<{}}] {:3.0f} %  {}  {}", "", filled, "", kWidth - filled,
             done * 100, what, eta);
  std::fflush(stderr);
  is_drawn_ = true;
}

void ProgressBar::note(const std::string& line) {
  if (is_quiet_) return;
  clear();
  fmt::print(stderr, "{}\n", line);
}

void ProgressBar::clear() {
  if (is_drawn_) fmt::print(stderr, "\r\x1b[K");
  is_drawn_ = false;
}

std::string human_bytes(double bytes) {
  if (bytes >= 1e9) return fmt::format("{:.2f} GB", bytes / 1e9);
  if (bytes >= 1e6) return fmt::format("{:.2f} MB", bytes / 1e6);
  return fmt::format("{:.1f} kB", bytes / 1e3);
}

std::string human_seconds(double seconds) {
  const int whole = static_cast<int>(std::lround(seconds));
  if (whole >= 3600) {
    return fmt::format("{}:{:02d}:{:02d}", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return fmt::format("{}:{:02d}", whole / 60, whole % 60);
}

std::string shell_words(std::span<const std::string> words) {
  std::string line;
  for (const std::string& word : words) {
    if (!line.empty()) line += ' ';
    const bool is_plain =
        !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
          return std::isalnum(c) != 0 ||
                 std::string_view("-_./,=+:@%").find(c) != std::string::npos;
        });
    if (is_plain) {
      line += word;
      continue;
    }
    line += '\'';
    for (const char c : word) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += '\'';
  }
  return line;
}

std::string command_line() {
  std::vector<std::string> words = {"quern"};
  const auto text = read_file("/proc/self/cmdline", 1 << 20);
  if (!text) return words[0];
  for (size_t at = text->find('\0'); at != std::string::npos && at + 1 < text->size();) {
    const size_t end = std::min(text->find('\0', at + 1), text->size());
    words.push_back(text->substr(at + 1, end - at - 1));
    at = end;
  }
  return shell_words(words);
}

std::optional<double> calibration_overlap(const ModelFiles& files, std::span<const Token> text) {
  const Json& calibration = files.packed().calibration;
  const auto runs = calibration.is_object() ? calibration.find("runs") : calibration.end();
  return runs == calibration.end() ? std::nullopt : overlap(*runs, text);
}

std::string overlap_warning(std::optional<double> share) {
  constexpr double kChance = 0.01;  // texts of one kind share phrases, and far less than that
  if (!share || *share < kChance) return "";
  return fmt::format(
      "{:.1f} % of the text's runs of {} tokens stood in the calibration text: what is measured on "
      "it flatters the model",
      100 * *share, kOverlapRun);
}

Result<std::string> evaluation_text(const std::string& path) {
  if (!path.empty()) return read_file(path);
  std::error_code problem;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", problem);
  const auto root = program.parent_path().parent_path();
  for (const char* place : {"models/evaluation.txt", "share/quern/evaluation.txt"}) {
    if (std::filesystem::exists(root / place, problem)) return read_file((root / place).string());
  }
  return usage_error("the bundled evaluation text is not beside the program; give --text FILE");
}

std::vector<std::string> split_texts(const std::string& text) {
  std::vector<std::string> texts;
  size_t at = 0;
  while (at <= text.size()) {
    const size_t end = std::min(text.find(';', at), text.size());
    std::string part = text.substr(at, end - at);
    const size_t first = part.find_first_not_of(" \t\n");
    if (first != std::string::npos) {
      part.erase(part.find_last_not_of(" \t\n") + 1);
      texts.push_back(part.substr(first));
    }
    at = end + 1;
  }
  return texts;
}

}  // namespace quern::cli
