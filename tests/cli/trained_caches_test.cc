// SPDX-License-Identifier: Apache-2.0
// Caches that read trained parameters, in the program: with such as no training made.
#include <gtest/gtest.h>

#include "cache_run.h"
#include "formats/json.h"
#include "program.h"

namespace quern {
namespace {

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";

class TrainedCaches : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::copy(kTiny, model_);
    test::write_tables(model_, test::put_trained);
    std::string words;
    for (int i = 0; i < 40; ++i)
      words += "The history of the city begins with a small settlement. ";
    ASSERT_TRUE(write_file_atomically(text_, words));
  }
  test::Ran eval(const std::string& model, const std::string& kv) const {
    return test::run_quern({"eval", model, "--base", model, "--text", text_, "--ctx", "128",
                            "--windows", "2", "--json", "--kv", kv});
  }
  double measured(const std::string& kv, const char* what) const {
    const test::Ran ran = eval(model_, kv);
    EXPECT_EQ(ran.code, 0) << kv << ": " << ran.err;
    return ran.code == 0 ? Json::parse(ran.out)[what].get<double>() : -1;
  }
  double divergence(const std::string& kv) const { return measured(kv, "kl_mean"); }

  test::ScratchFolder scratch_;
  std::string model_ = scratch_ / "tiny", text_ = scratch_ / "text";
};

TEST_F(TrainedCaches, AreEvaluatedAsTheyRun) {
  const double bare = divergence("kv(evict=h2o(32))");
  EXPECT_GT(bare, 0);
  EXPECT_NE(divergence("kv(evict=less(h2o(32)))"), bare);
  EXPECT_GT(divergence("kv(merge=dmc(decision=linear))"), 0);
  EXPECT_LT(measured("kv(merge=dmc(window=0, decision=linear))", "kv_bytes"),
            measured("f16", "kv_bytes"));
  for (const char* kv : {"kv(evict=less(h2o(8)))", "kv(merge=dmc(decision=linear))"}) {
    const auto run = [&](std::vector<std::string> more) {
      std::vector<std::string> args = {
          "run",          model_,   "-p",     "The history of the city",
          "-n",           "24",     "--temp", "0",
          "--ignore-eos", "--json", "--kv",   kv};
      args.insert(args.end(), more.begin(), more.end());
      const test::Ran ran = test::run_quern(args);
      EXPECT_EQ(ran.code, 0) << ran.err;
      return ran.code == 0 ? Json::parse(ran.out)["text"].get<std::string>() : "";
    };
    const std::string whole = run({}), file = scratch_ / "cache";
    EXPECT_NE(whole, "");
    EXPECT_EQ(run({"--prompt-cache", file}), whole);
    EXPECT_EQ(run({"--prompt-cache", file}), whole);
    std::filesystem::remove(file);
  }
}

TEST_F(TrainedCaches, CalibrationKeepsThem) {
  const double before = divergence("kv(evict=less(h2o(32)))");
  const char* nuq = "kv(k=nuq(2), v=nuq(2), rope=read)";
  const test::Ran ran = test::run_quern({"calibrate-kv", model_, "--calibration", text_,
                                         "--nsamples", "4", "--seqlen", "100", "--kv", nuq});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_GT(divergence(nuq), 0);
  EXPECT_EQ(divergence("kv(evict=less(h2o(32)))"), before);
}

TEST_F(TrainedCaches, WithoutThemTheProgramSaysSo) {
  for (const char* kv : {"kv(evict=less(h2o(32)))", "kv(merge=dmc(decision=linear))"}) {
    const test::Ran ran = eval(kTiny, kv);
    EXPECT_EQ(ran.code, 2) << ran.err;
    EXPECT_NE(ran.err.find("training makes it"), std::string::npos) << ran.err;
  }
  EXPECT_EQ(eval(kTiny, "kv(merge=dmc)").code, 0);  // its decisions are in the heads
}

}  // namespace
}  // namespace quern
