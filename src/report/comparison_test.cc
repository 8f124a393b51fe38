// SPDX-License-Identifier: Apache-2.0
#include "report/comparison.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "fixtures.h"
#include "report/page.h"

namespace quern {
namespace {

constexpr const char* kHostile =
    "</script><script>alert(1)</script> & \" ' | ` <!-- \xff \xE2\x80\xA8";

ComparedModel model(const std::string& recipe, uint64_t bytes, double kl) {
  ComparedModel row;
  row.recipe = recipe;
  row.bytes = bytes;
  row.eval.kl_mean = kl;
  row.eval.has_base = kl > 0;
  row.eval.ppl = 20;
  return row;
}

Comparison hostile() {
  Comparison comparison;
  comparison.model = {{"path", valid_utf8(kHostile)}};
  comparison.command = kHostile;
  comparison.prompt = kHostile;
  comparison.warnings = {valid_utf8(kHostile)};
  comparison.rows = {model("original", 100, 0), model(kHostile, 50, .1)};
  comparison.rows[1].samples = {{kHostile, kHostile, kHostile, 3}};
  comparison.rows[1].calibration = {{"text", valid_utf8(kHostile)}, {"tokens", 7}};
  return comparison;
}

size_t count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

TEST(Comparison, TheBestAreBeatenByNoneInBoth) {
  std::vector<ComparedModel> rows = {model("original", 100, 0), model("small", 20, .5),
                                     model("beaten", 30, .6), model("large", 60, .1),
                                     model("equal", 60, .1)};
  rank(rows);
  std::vector<std::string> names, best;
  for (const ComparedModel& row : rows) {
    names.push_back(row.recipe);
    if (row.is_best) best.push_back(row.recipe);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"original", "large", "equal", "beaten", "small"}));
  EXPECT_EQ(best, (std::vector<std::string>{"original", "large", "equal", "small"}));
}

TEST(Comparison, NothingInTheDataEndsTheScript) {
  const std::string page = report_page(hostile()), empty = report_page(Comparison());
  EXPECT_EQ(count(page, "</script"), count(empty, "</script"));
  EXPECT_EQ(count(page, "<script"), count(empty, "<script"));
  EXPECT_EQ(count(page, "<!--"), count(empty, "<!--"));
}

TEST(Comparison, ThePageHoldsTheNumbersAndTheLibraryAndLoadsNothing) {
  const std::string page = report_page(hostile());
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const size_t begin = page.find(open) + open.size();
  const Json data = Json::parse(page.substr(begin, page.find("</script>", begin) - begin));
  EXPECT_EQ(data["prompt"], valid_utf8(kHostile));
  EXPECT_EQ(data["rows"][1]["samples"][0]["agreed_tokens"], 3);
  EXPECT_EQ(data["rows"][1]["bytes"], 50);
  EXPECT_NE(page.find("Chart.js v"), std::string::npos);
  EXPECT_NE(page.find("Released under the MIT License"), std::string::npos);
  for (const char* place : {"@PAGE_CSS@", "@PAGE_JS@", "@CHART_JS@", "@DATA@"}) {
    EXPECT_EQ(page.find(place), std::string::npos) << place;
  }
  for (const char* load : {"src=", "<link", "@import", "url("}) {
    EXPECT_EQ(page.find(load), std::string::npos) << load;
  }
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  EXPECT_NE(page.find("name=\"viewport\""), std::string::npos);
}

TEST(Comparison, CsvDoublesQuotesAndMarkdownEscapes) {
  Comparison comparison = hostile();
  comparison.rows[1].recipe = "a \"b\", | <i>`c`";
  const std::string csv = to_csv(comparison);
  EXPECT_NE(csv.find("\"a \"\"b\"\", | <i>`c`\",50,"), std::string::npos) << csv;
  const std::string page = to_markdown(comparison);
  EXPECT_NE(page.find("a \"b\", \\| \\<i\\>\\`c\\`"), std::string::npos) << page;
  comparison.command = "quern '```\nno way out'";
  EXPECT_NE(to_markdown(comparison).find("````\nquern '```\nno way out'\n````\n"),
            std::string::npos);
}

TEST(Comparison, TasksFollowTheTable) {
  Comparison comparison = hostile();
  comparison.rows[1].recipe = "rtn";
  EXPECT_EQ(to_table(comparison).find("acc, %"), std::string::npos);
  comparison.rows[1].tasks = {{{"task", "arc"},
                               {"items", 10},
                               {"acc", .25},
                               {"acc_stderr", .125},
                               {"acc_difference", -.5},
                               {"acc_difference_stderr", .1},
                               {"p_value", .03125}}};
  for (const std::string& text : {to_table(comparison), to_markdown(comparison)}) {
    EXPECT_NE(text.find("25.00 ± 12.50"), std::string::npos) << text;
    EXPECT_NE(text.find("-50.00"), std::string::npos) << text;
    EXPECT_NE(text.find("0.031"), std::string::npos) << text;
  }
}

TEST(TensorCosts, AddUpToTheFileAndNameTheirWeights) {
  const auto files = ModelFiles::open(QUERN_SOURCE_DIR "/models/tiny");
  ASSERT_TRUE(files);
  const std::vector<TensorCost> rows = tensor_costs(**files);
  uint64_t bytes = 0;
  int64_t n_weights = 0;
  for (const TensorCost& row : rows) {
    ASSERT_TRUE(row.id.has_value()) << row.name;
    EXPECT_EQ(row.bpw(), 16) << row.name;
    EXPECT_EQ(row.error, -1);
    bytes += row.bytes;
    n_weights += row.n_weights;
  }
  EXPECT_EQ(n_weights, (*files)->n_params());
  EXPECT_EQ(bytes, 2 * static_cast<uint64_t>(n_weights));
}

}  // namespace
}  // namespace quern
