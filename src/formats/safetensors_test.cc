// SPDX-License-Identifier: Apache-2.0
#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

namespace quern {
namespace {

std::string scratch(const char* name) {
  const std::string path = ::testing::TempDir() + "quern_safetensors_" + name;
  std::filesystem::remove(path);
  std::filesystem::remove(path + ".tmp");
  return path;
}

std::string image(std::string_view header, size_t n_data) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file += header;
  for (size_t i = 0; i < n_data; ++i) file += static_cast<char>(i);
  return file;
}

Result<SafetensorsHeader> parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)));
}

// The message that refuses a header over `n_data` bytes, "" if it is accepted.
std::string problem(std::string_view header, size_t n_data) {
  const auto parsed = parse(image(header, n_data));
  return parsed ? "" : parsed.error().message;
}

std::string entry(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return fmt::format(R"({{"dtype":"{}","shape":{},"data_offsets":{}}})", dtype, shape, offsets);
}

TEST(Safetensors, IndexesTensorsScalarsAndEmptyAxes) {
  const std::string header =
      fmt::format(R"({{"b":{},"a":{},"e":{},"s":{},"__metadata__":{{"format":"pt"}}}}   )",
                  entry("F32", "[2,1]", "[0,8]"), entry("U8", "[3]", "[10,13]"),
                  entry("F16", "[0,7]", "[8,8]"), entry("BF16", "[]", "[8,10]"));
  const std::string file = image(header, 13);
  const auto parsed = parse(file);
  ASSERT_TRUE(parsed) << parsed.error().message;
  ASSERT_EQ(parsed->tensors.size(), 4u);
  EXPECT_EQ(parsed->tensors[0].name, "a");
  EXPECT_EQ(static_cast<int>(parsed->tensors[0].bytes[0]), 10);
  EXPECT_EQ(parsed->tensors[1].shape, (Shape{2, 1}));
  EXPECT_EQ(parsed->tensors[2].n_bytes, 0u);
  EXPECT_EQ(parsed->tensors[3].dtype, DType::kBF16);
  EXPECT_EQ(parsed->metadata.at("format"), "pt");
  EXPECT_EQ(matrix_rows(parsed->tensors[1]), 2);
  EXPECT_EQ(matrix_cols(parsed->tensors[3]), 1);
  EXPECT_TRUE(parse(image("{}", 0)));
}

TEST(Safetensors, SubByteTypesMustFillWholeBytes) {
  EXPECT_EQ(problem(fmt::format("{{\"a\":{}}}", entry("F4", "[2,3]", "[0,3]")), 3), "");
  EXPECT_EQ(problem(fmt::format("{{\"a\":{}}}", entry("F6_E2M3", "[4]", "[0,3]")), 3), "");
  EXPECT_NE(problem(fmt::format("{{\"a\":{}}}", entry("F4", "[3]", "[0,2]")), 2), "");
  EXPECT_NE(problem(fmt::format("{{\"a\":{}}}", entry("F6_E3M2", "[3]", "[0,2]")), 2), "");
}

TEST(Safetensors, RefusesCorruptEntriesReadably) {
  struct Case {
    std::string entry, says;
  };
  for (const Case& c : {
           Case{entry("F32", "[2]", "[0,4]"), "hold 4 bytes, shape [2] of F32 needs 8"},
           Case{entry("F32", "[1]", "[0,12]"), "do not fit the 8 bytes"},
           Case{entry("F32", "[2]", "[8,0]"), "offsets [8, 0)"},
           Case{entry("F32", "[2]", "[-8,0]"), "at least 0"},
           Case{entry("F32", "[2]", "[0.0,8]"), "at least 0"},
           Case{entry("F32", "[2]", "[0,8.5]"), "at least 0"},
           Case{entry("F32", "[2]", "[\"0\",8]"), "at least 0"},
           Case{entry("F32", "[2]", "[0,1e30]"), "at least 0"},
           Case{entry("F32", "[2]", "[0,18446744073709551615]"), "at least 0"},
           Case{entry("F32", "[2]", "[0,9223372036854775807]"), "do not fit"},
           Case{entry("F32", "[2]", "[0]"), "expected 2"},
           Case{entry("F32", "[2]", "[0,8,8]"), "expected 2"},
           Case{entry("F32", "[2]", "8"), "not a list"},
           Case{entry("F32", "[-2]", "[0,8]"), "at least 0"},
           Case{entry("F32", "[2.0]", "[0,8]"), "at least 0"},
           Case{entry("F32", "2", "[0,8]"), "not a list"},
           Case{entry("F32", "[4294967296,4294967296]", "[0,8]"), "overflows"},
           Case{entry("F32", "[9223372036854775807]", "[0,8]"), "overflows"},
           Case{entry("F64", "[4611686018427387904]", "[0,8]"), "overflows"},
           Case{entry("F33", "[2]", "[0,8]"), "unknown dtype 'F33'"},
           Case{entry("f32", "[2]", "[0,8]"), "unknown dtype"},
           Case{R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})", "'dtype' is 7"},
           Case{R"({"shape":[2],"data_offsets":[0,8]})", "'dtype' is missing"},
           Case{R"({"dtype":"F32","data_offsets":[0,8]})", "'shape'"},
           Case{R"({"dtype":"F32","shape":[2]})", "'data_offsets'"},
           Case{R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1})", "unknown key 'x'"},
           Case{R"({"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})", "duplicate"},
           Case{"[]", "not an object"},
       }) {
    const std::string message = problem(fmt::format("{{\"w\":{}}}", c.entry), 8);
    EXPECT_NE(message.find(c.says), std::string::npos) << c.entry << ": " << message;
    EXPECT_EQ(message.rfind("safetensors: ", 0), 0u) << message;
  }
}

TEST(Safetensors, RefusesOverlapsHolesAndLooseEnds) {
  const auto two = [](std::string_view a, std::string_view b) {
    return fmt::format("{{\"a\":{},\"b\":{}}}", entry("U8", "[4]", a), entry("U8", "[4]", b));
  };
  EXPECT_EQ(problem(two("[0,4]", "[4,8]"), 8), "");
  EXPECT_EQ(problem(two("[4,8]", "[0,4]"), 8), "");
  EXPECT_NE(problem(two("[0,4]", "[0,4]"), 4).find("overlaps"), std::string::npos);
  EXPECT_NE(problem(two("[0,4]", "[3,7]"), 7).find("overlaps"), std::string::npos);
  EXPECT_NE(problem(two("[0,4]", "[5,9]"), 9).find("hole"), std::string::npos);
  EXPECT_NE(problem(two("[1,5]", "[5,9]"), 9).find("hole"), std::string::npos);
  EXPECT_NE(problem(two("[0,4]", "[4,8]"), 9).find("tensors end at 8, the data at 9"),
            std::string::npos);
  EXPECT_NE(problem(two("[0,4]", "[4,8]"), 7), "");
  EXPECT_NE(problem("{}", 1), "");
  const std::string inside = fmt::format("{{\"a\":{},\"z\":{}}}", entry("U8", "[4]", "[0,4]"),
                                         entry("U8", "[0]", "[2,2]"));
  EXPECT_NE(problem(inside, 4), "") << "an empty tensor inside another";
}

TEST(Safetensors, RefusesBadHeaders) {
  const std::string good = entry("U8", "[1]", "[0,1]");
  EXPECT_NE(problem(fmt::format("{{\"a\":{0},\"a\":{0}}}", good), 1).find("duplicate key 'a'"),
            std::string::npos);
  EXPECT_NE(problem(fmt::format(" {{\"a\":{}}}", good), 1).find("does not start"),
            std::string::npos);
  EXPECT_NE(problem("[]", 0), "");
  EXPECT_NE(problem("", 0), "");
  EXPECT_NE(problem(fmt::format("{{\"a\":{}", good), 1), "");
  EXPECT_NE(problem(fmt::format("{{\"\xff\":{}}}", good), 1), "") << "not UTF-8";
  EXPECT_NE(problem(R"({"__metadata__":{"a":1}})", 0).find("'a' is not a string"),
            std::string::npos);
  EXPECT_NE(problem(R"({"__metadata__":{"a":{}}})", 0), "");
  EXPECT_NE(problem(R"({"__metadata__":[]})", 0), "");
  EXPECT_NE(problem("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", 0), "");

  std::string file = image(fmt::format("{{\"a\":{}}}", good), 1);
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(parse(file.substr(0, size))) << "cut at " << size;
  }
  for (const uint64_t length :
       {uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}, uint64_t{file.size() - 7}}) {
    std::memcpy(file.data(), &length, 8);
    EXPECT_FALSE(parse(file)) << length;
  }
}

TEST(Safetensors, WriterRoundTripsAndAlignsData) {
  const std::string path = scratch("round_trip");
  auto writer = SafetensorsWriter::create(path,
                                          {{"small", DType::kU8, {3}},
                                           {"big", DType::kF32, {2, 2}},
                                           {"empty", DType::kF32, {0, 5}},
                                           {"half \"\xc3\xa9\"", DType::kF16, {1}},
                                           {"scalar", DType::kF64, {}}},
                                          {{"note", "line\n"}});
  ASSERT_TRUE(writer) << writer.error().message;
  std::vector<std::string> order;
  for (const TensorSpec& spec : writer->order()) order.push_back(spec.name);
  EXPECT_EQ(order,
            (std::vector<std::string>{"scalar", "big", "empty", "half \"\xc3\xa9\"", "small"}));
  const double scalar = 2.5;
  const float big[4] = {1, 2, 3, 4};
  const uint16_t half = 0x3c00;
  ASSERT_TRUE(writer->append("scalar", &scalar, 8));
  ASSERT_TRUE(writer->append("big", big, 4));
  ASSERT_TRUE(writer->append("big", big + 1, 12));
  EXPECT_FALSE(writer->append("big", big, 1)) << "too many bytes";
  EXPECT_FALSE(writer->append("small", big, 1)) << "not due";
  ASSERT_TRUE(writer->append("half \"\xc3\xa9\"", &half, 2));
  ASSERT_TRUE(writer->append("small", "abc", 3));
  EXPECT_FALSE(writer->append("more", "a", 1));
  EXPECT_FALSE(std::filesystem::exists(path));
  ASSERT_TRUE(writer->finish());

  const auto file = SafetensorsFile::open(path);
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ((*file)->tensors().size(), 5u);
  const TensorInfo* info = (*file)->find("big");
  ASSERT_NE(info, nullptr);
  EXPECT_EQ(info->shape, (Shape{2, 2}));
  EXPECT_EQ(std::memcmp(info->bytes, big, 16), 0);
  const auto* base = (*file)->file().bytes().data();
  EXPECT_EQ(((*file)->find("scalar")->bytes - base) % 64, 0);
  EXPECT_EQ(std::memcmp((*file)->find("small")->bytes, "abc", 3), 0);
  EXPECT_EQ((*file)->find("absent"), nullptr);
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  EXPECT_EQ((*file)->metadata().at("note"), "line\n");
}

TEST(Safetensors, WriterRefusesBadRequestsAndLeavesNothingBehind) {
  const std::string path = scratch("refused");
  const auto made = [&](std::vector<TensorSpec> specs) {
    return SafetensorsWriter::create(path, std::move(specs), {}).has_value();
  };
  EXPECT_FALSE(made({{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}));
  EXPECT_FALSE(made({{"__metadata__", DType::kU8, {1}}}));
  EXPECT_FALSE(made({{"a", DType::kF4, {3}}}));
  EXPECT_FALSE(made({{"a", DType::kU8, {-1}}}));
  EXPECT_FALSE(made({{"a", DType::kF32, {int64_t{1} << 62}}}));
  EXPECT_FALSE(made({{"\xff", DType::kU8, {1}}}));
  {
    auto writer = SafetensorsWriter::create(path, {{"a", DType::kU8, {4}}}, {});
    ASSERT_TRUE(writer);
    ASSERT_TRUE(writer->append("a", "abc", 3));
    const Status finished = writer->finish();
    ASSERT_FALSE(finished);
    EXPECT_NE(finished.error().message.find("got 3 bytes, expected 4"), std::string::npos);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  EXPECT_FALSE(SafetensorsWriter::create(path + "/no/such", {}, {}));
}

TEST(Safetensors, OpenNamesTheFile) {
  const std::string path = scratch("bad");
  ASSERT_TRUE(write_file_atomically(path, "short"));
  const auto file = SafetensorsFile::open(path);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().message, path + ": safetensors: 5 bytes, too short for a header");
}

}  // namespace
}  // namespace quern
