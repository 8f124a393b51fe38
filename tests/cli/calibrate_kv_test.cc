// SPDX-License-Identifier: Apache-2.0
// Tables of caches that `quern calibrate-kv` fits, and by what it weighs errors.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "formats/json.h"
#include "program.h"
#include "scratch.h"

namespace quern {
namespace {

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";

class CalibrateKv : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string words;
    for (int i = 0; i < 40; ++i) words += "The history of the city begins with a settlement. ";
    ASSERT_TRUE(write_file_atomically(text_, words));
  }
  test::Ran calibrate(const std::string& model, const std::vector<std::string>& more) const {
    std::vector<std::string> args = {"calibrate-kv", model,         "--calibration", text_,
                                     "--nsamples",   "2",           "--seqlen",      "100",
                                     "--kv",         "kvquant-2bit"};
    args.insert(args.end(), more.begin(), more.end());
    return test::run_quern(args);
  }
  // The file that it wrote, and what it says of it.
  std::string tables(const std::vector<std::string>& more, const std::string& weighed_by) const {
    const std::string model = scratch_ / "tiny";
    std::filesystem::remove_all(model);
    std::filesystem::copy(kTiny, model);
    std::vector<std::string> args = more;
    args.push_back("--json");
    const test::Ran ran = calibrate(model, args);
    EXPECT_EQ(ran.code, 0) << ran.err;
    if (ran.code != 0) return "";
    const Json json = Json::parse(ran.out);
    EXPECT_EQ(json["weighed_by"], weighed_by);
    EXPECT_EQ(json["tokens"], 200);
    return *read_file(json["out"].get<std::string>());
  }

  test::ScratchFolder scratch_;
  std::string text_ = scratch_ / "text";
};

TEST_F(CalibrateKv, WeighsByGradientsUnlessAskedOtherwise) {
  const std::string usual = tables({}, "gradients");
  EXPECT_EQ(tables({"--weigh", "gradients"}, "gradients"), usual);
  EXPECT_NE(tables({"--weigh", "queries"}, "queries"), usual);
  EXPECT_EQ(calibrate(kTiny, {"--weigh", "keys"}).code, 2);
}

TEST_F(CalibrateKv, AModelWithoutGradientsIsWeighedByQueries) {
  const std::string model = scratch_ / "rounded";
  const test::Ran made =
      test::run_quern({"compress", kTiny, "-o", model, "--recipe", "act(int(8)) | rtn(int(8))"});
  ASSERT_EQ(made.code, 0) << made.err;
  const test::Ran refused = calibrate(model, {"--weigh", "gradients"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.err.find("--weigh gradients: layers.0.q: no gradients"), std::string::npos)
      << refused.err;
  const test::Ran usual = calibrate(model, {});
  EXPECT_EQ(usual.code, 0) << usual.err;
  EXPECT_NE(usual.out.find("weighed by queries"), std::string::npos) << usual.out;
  EXPECT_NE(usual.err.find("weighed by queries: layers.0.q: no gradients"), std::string::npos)
      << usual.err;
}

}  // namespace
}  // namespace quern
