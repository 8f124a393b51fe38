// SPDX-License-Identifier: Apache-2.0
#include "allocate/curves.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "scratch.h"

namespace quern {
namespace {

constexpr char kGood[] =
    R"json({"quern_curves": 1, "key": "k", "units": {"q[0:1]": {"probe_kl": 0.5, "probe_loss": 0.25,
    "points": {"rtn(int(4))": {"loss": 0.125, "seconds_per_weight": 1e-7}}}}})json";

TEST(Curves, AreReadAsTheyWereWritten) {
  const test::ScratchFolder scratch;
  const std::string path = scratch / "deep/curves.json";
  Curves curves;
  curves.key = "key";
  curves.units["down[1:2]"] = {0.1, 0.2, {{"keep", {0, 0}}, {"rtn(int(4))", {0.3, 1e-9}}}};
  ASSERT_TRUE(curves.save(path).has_value());
  const auto read = Curves::load(path, "key");
  ASSERT_TRUE(read.has_value()) << read.error().message;
  const UnitCurve& unit = read->units.at("down[1:2]");
  EXPECT_EQ(unit.probe_kl, 0.1);
  EXPECT_EQ(unit.probe_loss, 0.2);
  EXPECT_EQ(unit.points.at("rtn(int(4))").loss, 0.3);
  EXPECT_EQ(unit.points.at("rtn(int(4))").seconds, 1e-9);
  EXPECT_FALSE(Curves::load(path, "another key").has_value());
  const auto absent = Curves::load(scratch / "absent.json", "key");
  ASSERT_TRUE(absent.has_value());
  EXPECT_TRUE(absent->units.empty());
}

TEST(Curves, DamagedFilesAreErrorsThatSayWhere) {
  ASSERT_TRUE(curves_from_json(*parse_json(kGood, "good"), "good").has_value());
  const std::pair<const char*, const char*> damages[] = {
      {"\"quern_curves\": 1", "\"quern_curves\": 2"},
      {"\"probe_kl\": 0.5", "\"probe_kl\": -2"},
      {"\"probe_loss\": 0.25", "\"probe_loss\": \"much\""},
      {"\"loss\": 0.125", "\"loss\": -1"},
      {"\"loss\": 0.125, ", ""},
      {"\"points\"", "\"lines\""},
      {"\"units\"", "\"parts\""},
  };
  for (const auto& [from, to] : damages) {
    std::string text = kGood;
    text.replace(text.find(from), std::string(from).size(), to);
    const auto json = parse_json(text, "damaged");
    ASSERT_TRUE(json.has_value()) << text;
    const auto curves = curves_from_json(*json, "damaged");
    ASSERT_FALSE(curves.has_value()) << text;
    EXPECT_FALSE(curves.error().message.empty());
  }
}

}  // namespace
}  // namespace quern
