// SPDX-License-Identifier: Apache-2.0
// The program, stopped at any moment: a killed compression goes on where it was and ends with the
// bytes of an undisturbed one; nothing half done ever stands under the name of the output.
#include <gtest/gtest.h>

#include <thread>

#include "base/random.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "program.h"
#include "scratch.h"

namespace quern {
namespace {

namespace fs = std::filesystem;
using test::Child;
using test::files_of;
using test::Ran;
using test::run_quern;
using test::ScratchFolder;

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";
const char* const kRecipe =
    "sort | rotate(rht) | act(int(8, per=tensor, scale=static)) @ down | act(int(6)) | "
    "ldlq(int(3, group=32), drift=0.5)";
constexpr int kSteps = 8;  // embedding, 6 layers, head

std::vector<std::string> command(const std::string& out, const std::string& recipe = kRecipe,
                                 const std::vector<std::string>& more = {}) {
  std::vector<std::string> args = {"compress",   kTiny, "-o",       out,  "--recipe", recipe,
                                   "--nsamples", "2",   "--seqlen", "32", "--json"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

int finished_steps(const std::string& out) {
  std::error_code ignored;
  int n = 0;
  for (int step = 0; step < kSteps; ++step) {
    n += fs::exists(fmt::format("{}.partial/step-{:05d}.safetensors", out, step), ignored) ? 1 : 0;
  }
  return n;
}

// Waits until the child has `n` finished steps (0: a journal at all); false if it ended before.
bool wait_for_steps(const Child& child, const std::string& out, int n) {
  const std::string job = out + ".partial/job.json";
  while (child.is_running()) {
    if (fs::exists(job) && finished_steps(out) >= n) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return false;
}

// Leaves the work of `n` steps behind.
void leave_steps(const std::string& out, int n, const std::string& recipe = kRecipe) {
  Child child(command(out, recipe));
  ASSERT_TRUE(wait_for_steps(child, out, n));
  child.kill(SIGKILL);
  EXPECT_EQ(child.wait().signal, SIGKILL);
  ASSERT_FALSE(fs::exists(out));
  ASSERT_GE(finished_steps(out), n);
}

// The event of that name among JSON lines.
Json event(const Ran& ran, const std::string& name) {
  size_t at = 0;
  while (at < ran.out.size()) {
    const size_t end = ran.out.find('\n', at);
    const Json json = Json::parse(ran.out.substr(at, end - at));
    if (json["event"] == name) return json;
    at = end + 1;
  }
  ADD_FAILURE() << "no event " << name << ": " << ran.err;
  return Json::object();
}

class Resume : public ::testing::Test {
 protected:
  // What an undisturbed run writes, and how long it takes; made once.
  static void SetUpTestSuite() {
    const std::string out = fmt::format("{}quern_undisturbed_{}", ::testing::TempDir(), ::getpid());
    const Ran ran = run_quern(command(out));
    ASSERT_EQ(ran.code, 0) << ran.err;
    expected_ = files_of(out);
    seconds_ = ran.seconds;
    fs::remove_all(out);
  }

  void finish_and_compare(const std::string& out) {
    if (fs::exists(out) && !fs::exists(out + ".partial")) {  // it was killed after the last rename
      EXPECT_TRUE(files_of(out) == expected_);
      return;
    }
    if (fs::exists(out)) {  // between the rename and the end of the clearing up
      EXPECT_TRUE(files_of(out) == expected_);
      fs::remove_all(out);
    }
    const Ran ran = run_quern(command(out));
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_TRUE(files_of(out) == expected_);
    EXPECT_FALSE(fs::exists(out + ".partial"));
  }

  static std::map<std::string, std::string> expected_;
  static double seconds_;
  ScratchFolder scratch_;
};

std::map<std::string, std::string> Resume::expected_;
double Resume::seconds_ = 0;

TEST_F(Resume, AfterAKillAtAnyStepTheBytesAreThoseOfAnUndisturbedRun) {
  for (const int n : {0, 1, 4, kSteps}) {
    SCOPED_TRACE(n);
    const std::string out = scratch_ / fmt::format("out{}", n);
    Child child(command(out));
    wait_for_steps(child, out, n);
    child.kill(SIGKILL);
    child.wait();
    finish_and_compare(out);
  }
}

TEST_F(Resume, AfterKillsAtRandomTimesTheBytesAreThoseOfAnUndisturbedRun) {
  Random random(static_cast<uint64_t>(::getpid()));
  const std::string out = scratch_ / "out";
  for (int i = 0; i < 4 && !fs::exists(out); ++i) {  // one run, killed again and again
    const double delay = random.uniform() * seconds_;
    Child child(command(out));
    std::this_thread::sleep_for(std::chrono::duration<double>(delay));
    child.kill(SIGKILL);
    child.wait();
  }
  finish_and_compare(out);
}

TEST_F(Resume, SlicesAndBiasesComeBackFromTheJournal) {
  for (const char* recipe : {"slice(0.25) | rotate(sites=ffn) | ldlq(int(4, group=32))",
                             "bias_correction | ldlq(int(3, group=32))"}) {
    const std::string whole = scratch_ / "whole", out = scratch_ / "out";
    ASSERT_EQ(run_quern(command(whole, recipe)).code, 0);
    for (const int n : {1, 4}) {
      leave_steps(out, n, recipe);
      const Ran ran = run_quern(command(out, recipe));
      ASSERT_EQ(ran.code, 0) << ran.err;
      EXPECT_TRUE(files_of(out) == files_of(whole)) << n;
      fs::remove_all(out);
    }
    fs::remove_all(whole);
  }
}

TEST_F(Resume, FinishedStepsAreNotDoneAgain) {
  const std::string out = scratch_ / "out";
  leave_steps(out, 3);
  const std::string first = out + ".partial/step-00001.safetensors";
  const auto written = fs::last_write_time(first);
  Child child(command(out));
  ASSERT_TRUE(wait_for_steps(child, out, 6));
  EXPECT_EQ(fs::last_write_time(first), written);
  const Ran ran = child.wait();
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_GE(event(ran, "plan")["finished_steps"], 3);
  EXPECT_TRUE(files_of(out) == expected_);
}

TEST_F(Resume, AnInterruptLeavesNoOutputAndCanBeContinued) {
  for (const int n : {0, 2}) {
    const std::string out = scratch_ / fmt::format("out{}", n);
    Child child(command(out));
    ASSERT_TRUE(wait_for_steps(child, out, n));
    child.kill(SIGINT);
    const Ran ran = child.wait();
    EXPECT_EQ(ran.code, 130) << ran.err;
    EXPECT_NE(ran.err.find("same command"), std::string::npos) << ran.err;
    EXPECT_FALSE(fs::exists(out));
    EXPECT_TRUE(fs::exists(out + ".partial"));
    finish_and_compare(out);
  }
}

TEST_F(Resume, AnotherRecipeOrSeedStartsAnew) {
  const char* other = "rotate(rht) | ldlq(int(4, group=32))";
  const std::string fresh = scratch_ / "fresh";
  ASSERT_EQ(run_quern(command(fresh, other)).code, 0);
  const std::string out = scratch_ / "out";
  leave_steps(out, 3);
  Ran ran = run_quern(command(out, other));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(event(ran, "plan")["finished_steps"], 0);
  EXPECT_TRUE(files_of(out) == files_of(fresh));
  fs::remove_all(out);
  leave_steps(out, 3);
  ran = run_quern(command(out, kRecipe, {"--seed", "1"}));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(event(ran, "plan")["finished_steps"], 0);
}

// Writes the step again with another report.
void replace_report(const std::string& path, const std::string& report) {
  const std::string copy = path + ".copy";
  {
    const auto file = SafetensorsFile::open(path);
    ASSERT_TRUE(file.has_value());
    std::vector<TensorSpec> specs;
    for (const TensorInfo& tensor : (*file)->tensors()) {
      specs.push_back({tensor.name, tensor.dtype, tensor.shape});
    }
    auto writer = SafetensorsWriter::create(copy, specs, {{"quern_report", report}});
    ASSERT_TRUE(writer.has_value());
    for (const TensorSpec& spec : writer->order()) {
      const TensorInfo* tensor = (*file)->find(spec.name);
      ASSERT_TRUE(writer->append(spec.name, tensor->bytes, tensor->n_bytes));
    }
    ASSERT_TRUE(writer->finish());
  }
  fs::rename(copy, path);
}

TEST_F(Resume, ADamagedStepIsAClearError) {
  const std::string out = scratch_ / "out", kept = scratch_ / "kept";
  leave_steps(out, 4);
  fs::copy(out + ".partial", kept, fs::copy_options::recursive);
  const std::string step = out + ".partial/step-00002.safetensors";
  const std::string content = test::content_of(step);
  const auto expect_error = [&](const std::string& what) {
    const Ran ran = run_quern(command(out));
    EXPECT_EQ(ran.code, 1) << what << ": signal " << ran.signal << " " << ran.err;
    EXPECT_NE(ran.err.find("step-00002"), std::string::npos) << what << ": " << ran.err;
    EXPECT_FALSE(fs::exists(out)) << what;
  };
  const std::pair<const char*, std::string> damages[] = {
      {"empty", ""},
      {"garbage", std::string(content.size(), '\xa5')},
      {"truncated", content.substr(0, content.size() / 2)},
      {"truncated header", content.substr(0, 40)},
      {"longer", content + "x"},
  };
  for (const auto& [what, bytes] : damages) {
    ASSERT_TRUE(write_file_atomically(step, bytes));
    expect_error(what);
  }
  for (const char* report :
       {"", "{}", "[]", "7", R"({"matrices":[]})", R"({"matrices":{"x":{}}})",
        R"({"matrices":{"model.layers.1.self_attn.q_proj.weight":{"error":null}}})",
        R"({"matrices":{"model.layers.1.input_layernorm.weight":{"error":0}}})",
        R"({"matrices":{}})", R"({"matrices":{},"fitted":[7]})",
        R"({"matrices":{},"fitted":[{"site":"ffn","stage":0,"op":{"op":"diagonal","size":7}}]})"}) {
    ASSERT_TRUE(write_file_atomically(step, content));
    ASSERT_NO_FATAL_FAILURE(replace_report(step, report));
    expect_error(report);
  }
  // Another layer's step under this one's name.
  fs::copy_file(out + ".partial/step-00001.safetensors", step,
                fs::copy_options::overwrite_existing);
  expect_error("another layer's step");
  // A damaged job file means that nothing is known of the steps.
  fs::remove_all(out + ".partial");
  fs::copy(kept, out + ".partial", fs::copy_options::recursive);
  ASSERT_TRUE(write_file_atomically(out + ".partial/job.json", "{"));
  const Ran ran = run_quern(command(out));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(event(ran, "plan")["finished_steps"], 0);
  EXPECT_TRUE(files_of(out) == expected_);
}

TEST_F(Resume, ASecondProcessOnTheSameOutputIsRefused) {
  const std::string out = scratch_ / "out";
  Child first(command(out));
  ASSERT_TRUE(wait_for_steps(first, out, 1));
  first.kill(SIGSTOP);
  const Ran second = run_quern(command(out));
  EXPECT_EQ(second.code, 1);
  EXPECT_NE(second.err.find("another process"), std::string::npos) << second.err;
  first.kill(SIGCONT);
  const Ran ran = first.wait();
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(files_of(out) == expected_);
}

TEST_F(Resume, AnExistingOutputIsReplacedOnlyByForce) {
  const std::string out = scratch_ / "out";
  fs::create_directories(out);
  ASSERT_TRUE(write_file_atomically(out + "/precious", "x"));
  const Ran refused = run_quern(command(out));
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("--force"), std::string::npos) << refused.err;
  EXPECT_EQ(files_of(out).size(), 1u);
  EXPECT_FALSE(fs::exists(out + ".partial"));
  const Ran forced = run_quern(command(out, kRecipe, {"--force"}));
  EXPECT_EQ(forced.code, 0) << forced.err;
  EXPECT_TRUE(files_of(out) == expected_);
}

// Killed between moving the old output away and the new one in, or before clearing up.
TEST_F(Resume, AKillWhileReplacingCanBeRepeated) {
  const std::string out = scratch_ / "out";
  leave_steps(out, kSteps - 1);
  fs::create_directories(out + ".partial/replaced");
  ASSERT_TRUE(write_file_atomically(out + ".partial/replaced/old", "x"));
  fs::create_directories(out);
  ASSERT_TRUE(write_file_atomically(out + "/older", "x"));
  const Ran ran = run_quern(command(out, kRecipe, {"--force"}));
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(files_of(out) == expected_);
  EXPECT_FALSE(fs::exists(out + ".partial"));
}

}  // namespace
}  // namespace quern
