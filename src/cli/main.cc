// SPDX-License-Identifier: Apache-2.0
// quern: the program. Exit codes: 0 fine, 1 failed, 2 wrong usage, 130 interrupted.
#include <cstdio>
#include <exception>
#include <new>

#include "cli/command.h"

namespace quern::cli {
namespace {

constexpr Command kCommands[] = {
    {"compress", "write a smaller model", declare_compress},
    {"eval", "perplexity of a text, and divergence from a base model", declare_eval},
    {"compare", "compress by several recipes and tabulate size, quality, speed", declare_compare},
    {"inspect", "what a model is made of, byte by byte", declare_inspect},
    {"run", "generate text", declare_run},
    {"bench", "prompt and generation speed", declare_bench},
    {"calibrate-kv", "fit caches of keys and values to a model", declare_calibrate_kv},
    {"list", "codecs, transforms, solvers, architectures", declare_list},
};

int exit_code(const Error& error) {
  std::fprintf(stderr, "quern: %s\n", error.message.c_str());
  if (error.kind == ErrorKind::kUsage) return 2;
  return error.kind == ErrorKind::kCancelled ? 130 : 1;
}

int run(int argc, char** argv) {
  CLI::App app("quern compresses a trained language model, measures what that cost, and runs it.",
               "quern");
  app.set_version_flag("--version", "quern " QUERN_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  quern compress models/tiny -o out --recipe 'rotate(rht) | ldlq(int(4, group=64))'\n"
      "  quern eval out --text book.txt --base models/tiny\n"
      "  quern run out -p 'The history of the city'");
  Action action;
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.summary);
    sub->callback([&action, declared = command.declare(*sub)] { action = declared; });
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& problem) {
    const int code = app.exit(problem);
    return code == 0 ? 0 : 2;
  }
  watch_interrupts();
  try {
    const Status status = action();
    return status ? 0 : exit_code(status.error());
  } catch (const std::bad_alloc&) {
    return exit_code({ErrorKind::kFailed, "out of memory"});
  } catch (const std::exception& problem) {
    return exit_code({ErrorKind::kFailed, problem.what()});
  }
}

}  // namespace
}  // namespace quern::cli

int main(int argc, char** argv) { return quern::cli::run(argc, argv); }
