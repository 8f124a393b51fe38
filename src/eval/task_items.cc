// SPDX-License-Identifier: Apache-2.0
#include "eval/task_items.h"

#include <charconv>
#include <filesystem>
#include <optional>

#include "base/file.h"
#include "formats/json.h"

namespace quern {
namespace {

constexpr size_t kMostAnswers = 1024;

struct Parsed {
  TaskKind kind;
  TaskItem item;
};

// Code points, as a harness in Python counts them.
int64_t n_characters(std::string_view text) {
  int64_t n = 0;
  for (const char c : text) n += (static_cast<unsigned char>(c) & 0xc0) != 0x80 ? 1 : 0;
  return n;
}

Result<std::vector<std::string>> texts(const Json& object, std::string_view key) {
  const Json& array = object.at(key);
  if (!array.is_array() || array.empty() || array.size() > kMostAnswers) {
    return error("'{}': expected an array of 1 to {} strings", key, kMostAnswers);
  }
  std::vector<std::string> all;
  for (const Json& text : array) {
    if (!text.is_string()) return error("'{}': expected strings only", key);
    all.push_back(text.get<std::string>());
  }
  return all;
}

Result<int64_t> gold_of(const Json& object, size_t n) {
  return json_int(object, "gold", 0, static_cast<int64_t>(n) - 1);
}

Result<Parsed> of_choices(const Json& line) {
  Parsed parsed{TaskKind::kChoices, {}};
  QUERN_ASSIGN(const std::string context, json_string(line, "context"));
  QUERN_ASSIGN(const std::vector<std::string> choices, texts(line, "choices"));
  QUERN_ASSIGN(parsed.item.gold, gold_of(line, choices.size()));
  for (const std::string& choice : choices) {
    parsed.item.requests.push_back({context, " " + choice});
    parsed.item.lengths.push_back(n_characters(choice));
  }
  return parsed;
}

Result<Parsed> of_contexts(const Json& line) {
  Parsed parsed{TaskKind::kContexts, {}};
  QUERN_ASSIGN(const std::string continuation, json_string(line, "continuation"));
  QUERN_ASSIGN(const std::vector<std::string> contexts, texts(line, "contexts"));
  QUERN_ASSIGN(parsed.item.gold, gold_of(line, contexts.size()));
  for (const std::string& context : contexts) {
    parsed.item.requests.push_back({context, " " + continuation});
  }
  return parsed;
}

Result<Parsed> of_target(const Json& line) {
  QUERN_ASSIGN(std::string context, json_string(line, "context"));
  QUERN_ASSIGN(std::string target, json_string(line, "target"));
  return Parsed{TaskKind::kTarget, {{{std::move(context), std::move(target)}}, {}, 0}};
}

// A pair of strings: ["context", "continuation"] or {"arg_0": "context", "arg_1": "continuation"}.
std::optional<TaskRequest> request_of(const Json& pair) {
  const Json *first = nullptr, *second = nullptr;
  if (pair.is_array() && pair.size() == 2) {
    first = &pair[0];
    second = &pair[1];
  } else if (pair.is_object() && pair.contains("arg_0") && pair.contains("arg_1")) {
    first = &pair["arg_0"];
    second = &pair["arg_1"];
  }
  if (first == nullptr || !first->is_string() || !second->is_string()) return std::nullopt;
  return TaskRequest{first->get<std::string>(), second->get<std::string>()};
}

// The index of the right answer, as a number or in decimal.
Result<int64_t> harness_gold(const Json& target, size_t n) {
  int64_t gold = -1;
  if (target.is_number_integer()) {
    gold = target.get<int64_t>();
  } else if (target.is_string()) {
    const auto& text = target.get_ref<const std::string&>();
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), gold);
    if (problem != std::errc() || end != text.data() + text.size()) gold = -1;
  }
  if (gold < 0 || gold >= static_cast<int64_t>(n)) {
    return error("'target': expected the index of one of {} requests", n);
  }
  return gold;
}

Result<Parsed> of_harness(const Json& line) {
  Parsed parsed{TaskKind::kTarget, {}};
  std::vector<TaskRequest>& requests = parsed.item.requests;
  const Json& arguments = line["arguments"];
  const bool is_known = arguments.is_array() || arguments.is_object();
  if (!is_known || arguments.empty() || arguments.size() > kMostAnswers) {
    return error("'arguments': expected 1 to {} requests", kMostAnswers);
  }
  // An object has keys "gen_args_0", "gen_args_1", ...: past ten, their order is not that of text.
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string key = fmt::format("gen_args_{}", i);
    if (arguments.is_object() && !arguments.contains(key)) {
      return error("'arguments': {} requests, but no '{}'", arguments.size(), key);
    }
    auto request = request_of(arguments.is_object() ? arguments[key] : arguments[i]);
    if (!request) return error("'arguments': request {} is no pair of strings", i);
    requests.push_back(*std::move(request));
  }
  if (requests.size() == 1) return parsed;
  QUERN_ASSIGN(parsed.item.gold, harness_gold(line["target"], requests.size()));
  bool is_one_context = true;
  for (const TaskRequest& request : requests) {
    is_one_context = is_one_context && request.context == requests[0].context;
  }
  parsed.kind = is_one_context ? TaskKind::kChoices : TaskKind::kContexts;
  for (const TaskRequest& request : requests) {
    if (!is_one_context) break;
    const bool has_space = request.continuation.starts_with(' ');
    parsed.item.lengths.push_back(n_characters(request.continuation) - (has_space ? 1 : 0));
  }
  return parsed;
}

Result<Parsed> parse_line(const Json& line) {
  if (!line.is_object()) return error("expected an object");
  if (line.contains("arguments") && line.contains("target")) return of_harness(line);
  if (line.contains("choices")) return of_choices(line);
  if (line.contains("contexts")) return of_contexts(line);
  if (line.contains("target")) return of_target(line);
  return error("expected 'choices', 'contexts', 'target' or 'arguments'");
}

Result<Parsed> parse_item(std::string_view text, std::string_view where) {
  QUERN_ASSIGN(const Json line, parse_json(text, where));
  auto parsed = parse_line(line);
  if (!parsed) return tl::unexpected(in_context(std::move(parsed).error(), where));
  for (const TaskRequest& request : parsed->item.requests) {
    if (request.continuation.empty()) return error("{}: an empty answer", where);
  }
  return parsed;
}

}  // namespace

Result<Task> parse_task(std::string_view lines, std::string_view where, int64_t limit) {
  Task task;
  for (int64_t number = 1; !lines.empty(); ++number) {
    const size_t end = std::min(lines.find('\n'), lines.size());
    const std::string_view text = lines.substr(0, end);
    lines.remove_prefix(std::min(end + 1, lines.size()));
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{}:{}", where, number);
    QUERN_ASSIGN(Parsed parsed, parse_item(text, place));
    if (!task.items.empty() && parsed.kind != task.kind) {
      return error("{}: an item of another kind than those before", place);
    }
    task.kind = parsed.kind;
    task.items.push_back(std::move(parsed.item));
    if (limit > 0 && static_cast<int64_t>(task.items.size()) == limit) break;
  }
  if (task.items.empty()) return error("{}: no items", where);
  return task;
}

Result<Task> read_task(const std::string& path, int64_t limit) {
  QUERN_ASSIGN(const std::string lines, read_file(path));
  QUERN_ASSIGN(Task task, parse_task(lines, valid_utf8(path), limit));
  task.name = valid_utf8(std::filesystem::path(path).stem().string());
  return task;
}

}  // namespace quern
