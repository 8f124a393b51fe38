// SPDX-License-Identifier: Apache-2.0
#include "spec/spec.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "spec/params.h"
#include "spec/registry.h"

namespace quern::spec {
namespace {

TEST(Spec, CanonicalTextParsesBackToAnEqualTree) {
  for (const char* text : {
           "rtn(int(4, group=128))",
           "ldlq(int(4, group=128), order=act)",
           "rotate(rht) | ldlq(int(3, group=64), damping=0.01) @ all-lm_head",
           "rotate(hadamard, sites=residual+value) | rtn(int(8)) @ attn+down-layers[0:2]",
           "em(additive(2x8, dim=8), beam=8) | prune(sparsegpt, 2:4)",
           "kv(quant(k=int(2, per=channel), v=int(2)), window=128)",
           "x(-1.5, 1e-05, 0.25)",
       }) {
    const auto parsed = parse_recipe(text);
    ASSERT_TRUE(parsed) << text << ": " << parsed.error().message;
    EXPECT_EQ(print(*parsed), text);
    const auto again = parse_recipe(print(*parsed));
    ASSERT_TRUE(again);
    EXPECT_EQ(*again, *parsed);
  }
}

TEST(Spec, LinesCommentsAndBlanksSeparateStages) {
  const auto lines =
      parse_recipe("# a method\n  rotate( rht )  # first\n\nrtn(int( 4 ,group = 64))@all\n");
  const auto bars = parse_recipe("rotate(rht)|rtn(int(4, group=64)) @ all");
  ASSERT_TRUE(lines) << lines.error().message;
  ASSERT_TRUE(bars);
  EXPECT_EQ(*lines, *bars);
}

TEST(Spec, WrongTextIsRefusedWithItsColumn) {
  for (const char* text :
       {"", "|", "rtn(", "rtn(int(4)", "rtn(int(4)) @", "rtn() @ layers[3:3]", "rtn @ q[1:1]",
        "rtn(group=)", "rtn(4,)", "rtn(1e999)", "rtn)", "rtn || rtn", "rtn @ all--q", "a b", "\xff",
        "rtn @ layers[0:99999999]", "x(a+)", "x(1x)"}) {
    const auto parsed = parse_recipe(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_EQ(parsed.error().kind, ErrorKind::kUsage);
    EXPECT_NE(parsed.error().message.find("column"), std::string::npos) << parsed.error().message;
  }
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "x(";
  EXPECT_FALSE(parse_recipe(deep));
  EXPECT_FALSE(parse_recipe(std::string(100 << 10, 'a')));
}

TEST(Spec, RandomBytesNeverBreakTheParser) {
  Random random(7);
  const std::string alphabet = "rtnint(),=|@+-[]:0123456789. \n#x\"\\\xc3";
  for (int trial = 0; trial < 20000; ++trial) {
    std::string text(random.below(24), ' ');
    for (char& c : text) c = alphabet[random.below(alphabet.size())];
    if (const auto parsed = parse_recipe(text)) {
      const auto again = parse_recipe(print(*parsed));
      ASSERT_TRUE(again) << text << " printed as " << print(*parsed);
      EXPECT_EQ(*again, *parsed);
    }
  }
}

constexpr ParamSpec kSpecs[] = {
    {"bits", ParamKind::kInt, "", 2, 8, {}, {}},
    {"share", ParamKind::kNumber, "0.5", 0, 1, {}, {}},
    {"mode", ParamKind::kChoice, "slow", 0, 0, "slow|fast", {}},
    {"sites", ParamKind::kSet, "a", 0, 0, "a|b|c", {}},
};

TEST(Params, DefaultsFillInAndCanonicalFormNamesTheRest) {
  const auto params = Params::bind(*parse_call("x(4, sites=a+c)"), kSpecs);
  ASSERT_TRUE(params) << params.error().message;
  EXPECT_EQ(params->integer("bits"), 4);
  EXPECT_EQ(params->number("share"), 0.5);
  EXPECT_EQ(params->word("mode"), "slow");
  EXPECT_TRUE(params->has("sites", "c"));
  EXPECT_FALSE(params->has("sites", "b"));
  EXPECT_EQ(print(params->canonical()), "x(4, sites=a+c)");
  EXPECT_EQ(print(Params::bind(*parse_call("x(bits=3, share=0.5)"), kSpecs)->canonical()), "x(3)");
}

TEST(Params, ErrorsListWhatIsValid) {
  const std::pair<const char*, const char*> cases[] = {
      {"x", "bits"},
      {"x(9)", "2..8"},
      {"x(2.5)", "2..8"},
      {"x(4, speed=1)", "share"},
      {"x(4, mode=best)", "slow|fast"},
      {"x(4, sites=a+d)", "a|b|c"},
      {"x(4, bits=4)", "twice"},
      {"x(4, 0.1, slow, a, 5)", "too many"},
      {"x(bits=4, 0.1)", "positional"},
  };
  for (const auto& [text, expected] : cases) {
    const auto params = Params::bind(*parse_call(text), kSpecs);
    ASSERT_FALSE(params) << text;
    EXPECT_NE(params.error().message.find(expected), std::string::npos) << params.error().message;
  }
}

struct NumberInfo {
  std::string_view name;
  ParamSpecs params;
  Result<int64_t> (*make)(const Params& params);
};

TEST(Registry, MakesWhatACallNames) {
  const NumberInfo rows[] = {
      {"x", kSpecs, [](const Params& params) -> Result<int64_t> { return params.integer("bits"); }},
      {"y", {}, [](const Params&) -> Result<int64_t> { return error("y is broken"); }}};
  const std::span<const NumberInfo> all = rows;
  EXPECT_EQ(find(all, "y"), &rows[1]);
  EXPECT_EQ(find(all, "z"), nullptr);
  EXPECT_EQ(make(all, *parse_call("x(5)"), "number").value(), 5);
  const std::pair<const char*, const char*> cases[] = {
      {"y", "y is broken"}, {"x(9)", "2..8"}, {"z(1)", "no number 'z'; expected one of x, y"}};
  for (const auto& [text, expected] : cases) {
    const auto made = make(all, *parse_call(text), "number");
    ASSERT_FALSE(made) << text;
    EXPECT_NE(made.error().message.find(expected), std::string::npos) << made.error().message;
  }
}

}  // namespace
}  // namespace quern::spec
