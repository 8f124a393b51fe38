// SPDX-License-Identifier: Apache-2.0
#include "eval/task_items.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

TEST(TaskItems, ChoicesFollowASpace) {
  const auto task = parse_task(R"({"context": "Q: a?\nA:", "choices": ["no", "ça va"], "gold": 1})"
                               "\n\n"
                               R"({"id": 7, "context": "", "choices": ["x"], "gold": 0})",
                               "t");
  ASSERT_TRUE(task.has_value()) << task.error().message;
  EXPECT_EQ(task->kind, TaskKind::kChoices);
  ASSERT_EQ(task->items.size(), 2u);
  const TaskItem& item = task->items[0];
  ASSERT_EQ(item.requests.size(), 2u);
  EXPECT_EQ(item.requests[1].context, "Q: a?\nA:");
  EXPECT_EQ(item.requests[1].continuation, " ça va");
  EXPECT_EQ(item.lengths, (std::vector<int64_t>{2, 5}));  // characters, without the space
  EXPECT_EQ(item.gold, 1);
}

TEST(TaskItems, ContextsAndTargets) {
  const auto contexts =
      parse_task(R"({"contexts": ["a b", "a c"], "continuation": "is.", "gold": 0})", "t");
  ASSERT_TRUE(contexts.has_value()) << contexts.error().message;
  EXPECT_EQ(contexts->kind, TaskKind::kContexts);
  EXPECT_EQ(contexts->items[0].requests[1].context, "a c");
  EXPECT_EQ(contexts->items[0].requests[1].continuation, " is.");
  const auto target = parse_task(R"({"context": "a b", "target": " c"})", "t");
  ASSERT_TRUE(target.has_value()) << target.error().message;
  EXPECT_EQ(target->kind, TaskKind::kTarget);
  EXPECT_EQ(target->items[0].requests[0].continuation, " c");
}

TEST(TaskItems, SamplesOfTheHarness) {
  const auto lists = parse_task(
      R"({"doc": {}, "target": 1, "arguments": [["q", " no"], ["q", " yes"]], "resps": []})", "t");
  ASSERT_TRUE(lists.has_value()) << lists.error().message;
  EXPECT_EQ(lists->kind, TaskKind::kChoices);
  EXPECT_EQ(lists->items[0].lengths, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(lists->items[0].gold, 1);
  std::string arguments;
  for (int i = 11; i >= 0; --i) {
    arguments += fmt::format(R"({}"gen_args_{}": {{"arg_0": "c{}", "arg_1": " same"}})",
                             arguments.empty() ? "" : ", ", i, i);
  }
  const auto objects =
      parse_task(fmt::format(R"({{"target": "10", "arguments": {{{}}}}})", arguments), "t");
  ASSERT_TRUE(objects.has_value()) << objects.error().message;
  EXPECT_EQ(objects->kind, TaskKind::kContexts);
  ASSERT_EQ(objects->items[0].requests.size(), 12u);
  EXPECT_EQ(objects->items[0].requests[10].context, "c10");
  EXPECT_EQ(objects->items[0].gold, 10);
  const auto one = parse_task(
      R"({"target": " word", "arguments": {"gen_args_0": {"arg_0": "a", "arg_1": " word"}}})", "t");
  ASSERT_TRUE(one.has_value()) << one.error().message;
  EXPECT_EQ(one->kind, TaskKind::kTarget);
}

TEST(TaskItems, LimitStopsBeforeWhatFollows) {
  const std::string line = R"({"context": "a", "target": "b"})";
  const auto task = parse_task(line + "\n" + line + "\nnot JSON", "t", 2);
  ASSERT_TRUE(task.has_value()) << task.error().message;
  EXPECT_EQ(task->items.size(), 2u);
}

TEST(TaskItems, WhatIsWrongIsNamed) {
  const struct {
    const char *lines, *said;
  } kCases[] = {
      {"", "no items"},
      {"[]", "t:1: expected an object"},
      {"{}", "expected 'choices'"},
      {"{\"context\": 1}", "expected 'choices'"},
      {R"({"context": "a", "choices": [], "gold": 0})", "'choices': expected an array"},
      {R"({"context": "a", "choices": "b", "gold": 0})", "'choices': expected an array"},
      {R"({"context": "a", "choices": ["b", 1], "gold": 0})", "strings only"},
      {R"({"context": "a", "choices": ["b"], "gold": 1})", "gold"},
      {R"({"context": "a", "choices": ["b"]})", "gold"},
      {R"({"choices": ["b"], "gold": 0})", "context"},
      {R"({"context": "a", "target": ""})", "an empty answer"},
      {R"({"target": 2, "arguments": [["q", " a"], ["q", " b"]]})", "'target'"},
      {R"({"target": "1x", "arguments": [["q", " a"], ["q", " b"]]})", "'target'"},
      {R"({"target": 0, "arguments": [["q", " a"], ["q"]]})", "request 1"},
      {R"({"target": 0, "arguments": 3})", "'arguments'"},
      {R"({"target": 0, "arguments": {"gen_args_0": ["q", "a"], "x": ["q", "b"]}})", "gen_args_1"},
      {"{\"context\": \"a\", \"target\": \"b\"}\n{\"context\": \"a\", \"choices\": [\"b\"], "
       "\"gold\": 0}",
       "t:2: an item of another kind"},
  };
  for (const auto& c : kCases) {
    const auto task = parse_task(c.lines, "t");
    ASSERT_FALSE(task.has_value()) << c.lines;
    EXPECT_NE(task.error().message.find(c.said), std::string::npos) << task.error().message;
  }
}

}  // namespace
}  // namespace quern
