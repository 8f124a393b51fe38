// SPDX-License-Identifier: Apache-2.0
#include "formats/json.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

std::string problem(std::string_view text) {
  const auto parsed = parse_json(text, "t.json");
  return parsed ? "" : parsed.error().message;
}

std::string nested(int depth) {
  return std::string(static_cast<size_t>(depth), '[') +
         std::string(static_cast<size_t>(depth), ']');
}

TEST(Json, ReadsEveryKindOfValue) {
  const auto parsed = parse_json(R"({"a":[1,-2,2.5,true,null,"x\u00e9"],"b":{"c":{}}} )", "t");
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ((*parsed)["a"][0], 1);
  EXPECT_EQ((*parsed)["a"][1], -2);
  EXPECT_EQ((*parsed)["a"][2], 2.5);
  EXPECT_EQ((*parsed)["a"][5], "x\xc3\xa9");
  EXPECT_TRUE((*parsed)["b"]["c"].is_object());
  EXPECT_EQ(*parse_json("17", "t"), 17);
}

TEST(Json, RefusesWhatIsNotStrictJson) {
  EXPECT_NE(problem(R"({"a":1,"a":2})").find("duplicate key 'a'"), std::string::npos);
  EXPECT_NE(problem(R"({"a":1,"\u0061":2})").find("duplicate key 'a'"), std::string::npos);
  EXPECT_NE(problem(R"({"x":{"a":1,"b":[],"a":2}})").find("duplicate"), std::string::npos);
  for (const char* text : {"",
                           " ",
                           "{",
                           "[1,]",
                           "{\"a\":}",
                           "nul",
                           "1 2",
                           "{\"a\":1}x",
                           "'a'",
                           "[NaN]",
                           "[Infinity]",
                           "[1e999]",
                           "[-1e999]",
                           "[01]",
                           "[+1]",
                           "\"\xff\"",
                           "\"\xc0\x80\"",
                           "\"\xed\xa0\x80\"",
                           "\"\\ud800\"",
                           "\"\n\"",
                           "// c\n1",
                           "\"abc"}) {
    EXPECT_NE(problem(text), "") << text;
    EXPECT_EQ(problem(text).rfind("t.json: ", 0), 0u) << problem(text);
  }
}

TEST(Json, DepthIsLimitedTo64) {
  EXPECT_EQ(problem(nested(64)), "");
  EXPECT_NE(problem(nested(65)).find("nested deeper than 64"), std::string::npos);
  EXPECT_NE(problem(std::string(1000000, '[')), "");
}

TEST(Json, GettersSayWhatIsWrong) {
  const Json object = *parse_json(R"({"i":7,"neg":-7,"big":18446744073709551615,"huge":1e30,)"
                                  R"("f":2.0,"s":"x","b":true,"n":null})",
                                  "t");
  EXPECT_EQ(*json_int(object, "i", 0, 7), 7);
  EXPECT_EQ(*json_int(object, "neg", -10, 0), -7);
  EXPECT_FALSE(json_int(object, "neg", 0, 10));
  EXPECT_FALSE(json_int(object, "i", 0, 6));
  EXPECT_FALSE(json_int(object, "big", INT64_MIN, INT64_MAX));
  EXPECT_FALSE(json_int(object, "huge", INT64_MIN, INT64_MAX));
  EXPECT_FALSE(json_int(object, "f", 0, 10)) << "a float is no integer";
  EXPECT_FALSE(json_int(object, "s", 0, 10));
  EXPECT_FALSE(json_int(object, "b", 0, 10));
  EXPECT_EQ(json_int(object, "n", 0, 9).error().message, "'n' is missing, expected an integer");
  EXPECT_EQ(json_int(object, "i", 0, 6).error().message, "'i' is 7, expected an integer in [0, 6]");
  EXPECT_EQ(*json_int_or(object, "n", 0, 10, 3), 3);
  EXPECT_EQ(*json_int_or(object, "absent", 0, 10, 3), 3);
  EXPECT_FALSE(json_int_or(object, "s", 0, 10, 3)) << "a wrong type is not an absent key";
  EXPECT_EQ(*json_number(object, "i"), 7.0);
  EXPECT_EQ(*json_number(object, "f"), 2.0);
  EXPECT_FALSE(json_number(object, "s"));
  EXPECT_EQ(*json_number_or(object, "absent", 0.5), 0.5);
  EXPECT_TRUE(*json_bool_or(object, "b", false));
  EXPECT_FALSE(json_bool_or(object, "i", false).has_value());
  EXPECT_EQ(*json_string(object, "s"), "x");
  EXPECT_FALSE(json_string(object, "i"));
  EXPECT_EQ(*json_string_or(object, "n", "y"), "y");
  EXPECT_FALSE(json_int(Json::array(), "i", 0, 1));
}

TEST(Json, MissingFileIsAnError) {
  EXPECT_FALSE(read_json_file(::testing::TempDir() + "quern_no_such.json"));
}

}  // namespace
}  // namespace quern
