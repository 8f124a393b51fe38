// SPDX-License-Identifier: Apache-2.0
#include "formats/gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace quern {
namespace {

// Writes a GGUF image piece by piece, right or wrong.
class Image {
 public:
  template <class T>
  Image& put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Image& u32(uint32_t value) { return put(value); }
  Image& u64(uint64_t value) { return put(value); }
  Image& text(std::string_view value) {
    u64(value.size());
    bytes_ += value;
    return *this;
  }
  Image& head(uint64_t n_tensors, uint64_t n_keys, uint32_t version = 3) {
    bytes_ += "GGUF";
    return u32(version).u64(n_tensors).u64(n_keys);
  }
  Image& key(std::string_view name, GgufType type) {
    return text(name).u32(static_cast<uint32_t>(type));
  }
  Image& tensor(std::string_view name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    text(name).u32(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) u64(dim);
    return u32(type).u64(offset);
  }
  Image& data(size_t n, size_t alignment = 32) {
    bytes_.resize((bytes_.size() + alignment - 1) / alignment * alignment + n, '\1');
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

Result<GgufContents> parse(const std::string& bytes) {
  return parse_gguf(std::as_bytes(std::span(bytes)));
}

std::string problem(const Image& image) {
  const auto parsed = parse(image.bytes());
  return parsed ? "" : parsed.error().message;
}

// Expects the refusal of an image, with `part` in its message.
void refused(const Image& image, std::string_view part) {
  const std::string message = problem(image);
  EXPECT_NE(message.find(part), std::string::npos) << "expected '" << part << "', got: " << message;
  EXPECT_EQ(message.rfind("gguf: ", 0), 0u) << message;
}

Image one_tensor(std::vector<uint64_t> dims, uint32_t type, uint64_t offset, size_t n_data) {
  return Image().head(1, 0).tensor("w", std::move(dims), type, offset).data(n_data);
}

TEST(Gguf, IndexesTensorsSlowestAxisFirst) {
  const Image image = Image()
                          .head(3, 1)
                          .key("general.alignment", GgufType::kU32)
                          .u32(64)
                          .tensor("a", {3, 2}, 0, 0)
                          .tensor("b", {32}, 8, 64)
                          .tensor("c", {256, 1, 1, 2}, 14, 128)
                          .data(128 + 420, 64);
  const auto parsed = parse(image.bytes());
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(parsed->alignment, 64u);
  EXPECT_EQ(parsed->version, 3u);
  ASSERT_EQ(parsed->tensors.size(), 3u);
  EXPECT_EQ(parsed->tensors[0].shape, (Shape{2, 3}));
  EXPECT_EQ(parsed->tensors[0].dtype, DType::kF32);
  EXPECT_EQ(parsed->tensors[0].block_type, 0u);
  EXPECT_EQ(parsed->tensors[1].dtype, DType::kU8);
  EXPECT_EQ(parsed->tensors[1].block_type, 8u);
  EXPECT_EQ(parsed->tensors[1].n_bytes, 34u);
  EXPECT_EQ(parsed->tensors[1].bytes - parsed->tensors[0].bytes, 64);
  EXPECT_EQ(parsed->tensors[2].shape, (Shape{2, 1, 1, 256}));
  EXPECT_EQ(parsed->tensors[2].n_bytes, 420u);
  EXPECT_EQ(problem(Image().head(0, 0, 2)), "") << "version 2, no tensors, no data";
}

TEST(Gguf, EveryTruncationIsRefused) {
  const Image image = Image()
                          .head(1, 3)
                          .key("s", GgufType::kString)
                          .text("value")
                          .key("l", GgufType::kArray)
                          .u32(8)
                          .u64(2)
                          .text("x")
                          .text("yz")
                          .key("f", GgufType::kF64)
                          .put(1.5)
                          .tensor("w", {4}, 0, 0)
                          .data(16);
  EXPECT_EQ(problem(image), "");
  for (size_t size = 0; size < image.bytes().size(); ++size) {
    EXPECT_FALSE(parse(image.bytes().substr(0, size))) << "cut at " << size;
  }
}

TEST(Gguf, RefusesBadHeaders) {
  refused(Image().u32(0x12345678), "no magic");
  refused(Image().head(0, 0, 1), "version 1, expected 2 or 3");
  refused(Image().head(0, 0, 4), "version 4");
  refused(Image().head(0, 0, 0x03000000), "big-endian");
  refused(Image().head(1, 0), "1 tensors and 0 keys do not fit");
  refused(Image().head(~uint64_t{0}, 0).data(64), "do not fit");
  refused(Image().head(0, ~uint64_t{0}).data(64), "do not fit");
}

TEST(Gguf, RefusesBadMetadata) {
  const auto with = [](GgufType type) { return Image().head(0, 1).key("k", type); };
  refused(Image().head(0, 1).text("").u32(0).u64(0), "not printable ASCII");
  refused(Image().head(0, 1).text("k\xc3\xa9").u32(0).u64(0), "not printable ASCII");
  refused(Image().head(0, 1).text(std::string(65536, 'k')).u32(0).u64(0), "limit 65535");
  refused(Image().head(0, 1).u64(~uint64_t{0}).u64(0), "remain in the file");
  refused(Image().head(0, 1).text("k").u32(13).u64(0), "value type 13");
  refused(with(GgufType::kBool).put(uint8_t{2}), "key 'k': bool of value 2");
  refused(with(GgufType::kString).u64(uint64_t{1} << 63), "remain in the file");
  refused(with(GgufType::kArray).u32(7).u64(3).put(uint8_t{1}).put(uint16_t{0x0100 * 3}),
          "bool of value 3");
  refused(with(GgufType::kArray).u32(9).u64(0), "array of arrays");
  refused(with(GgufType::kArray).u32(77).u64(0), "value type 77");
  refused(with(GgufType::kArray).u32(10).u64(uint64_t{1} << 61), "exceeds the");
  refused(with(GgufType::kArray).u32(8).u64(uint64_t{1} << 60), "exceeds the");
  refused(Image().head(0, 2).key("k", GgufType::kU8).put('a').key("k", GgufType::kU8).put('a'),
          "key 'k' appears twice");
  const auto alignment = [](uint32_t value) {
    return Image().head(0, 1).key("general.alignment", GgufType::kU32).u32(value);
  };
  EXPECT_EQ(problem(alignment(8)), "");
  EXPECT_EQ(problem(alignment(1 << 20)), "");
  for (const uint32_t bad : {0u, 1u, 4u, 24u, 1u << 21, 1u << 31}) {
    refused(alignment(bad), "power of two");
  }
  refused(Image().head(0, 1).key("general.alignment", GgufType::kF32).put(32.0f), "expected a u32");
  refused(Image().head(0, 1).key("general.alignment", GgufType::kU64).u64(32), "expected a u32");
}

TEST(Gguf, RefusesBadTensors) {
  EXPECT_EQ(problem(one_tensor({4}, 0, 0, 16)), "");
  refused(one_tensor({4}, 0, 0, 15), "16 bytes at offset 0 exceed the 15");
  refused(one_tensor({4}, 0, 16, 64), "offset 16 is not a multiple of 32");
  refused(one_tensor({4}, 0, 32, 40), "exceed");
  refused(one_tensor({4}, 0, ~uint64_t{31}, 64), "exceed");
  refused(one_tensor({0}, 0, 0, 16), "dim 0 is 0");
  refused(one_tensor({4, uint64_t{1} << 63}, 0, 0, 16), "expected 1 to 2^63 - 1");
  refused(one_tensor({uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0, 16), "overflows");
  refused(one_tensor({uint64_t{1} << 62}, 0, 0, 16), "overflows");
  refused(one_tensor({1, 1, 1, 1, 1}, 0, 0, 16), "5 dims");
  refused(one_tensor({}, 0, 0, 64), "0 dims");
  refused(one_tensor({33, 2}, 8, 0, 128), "multiple of 32");
  refused(one_tensor({128, 2}, 12, 0, 144), "Q4_K needs a multiple of 256");
  for (const uint32_t id : {4u, 31u, 36u, 43u, 97u, 0x80000000u}) {
    refused(one_tensor({256}, id, 0, 4096), fmt::format("unknown type id {}", id));
  }
  refused(Image().head(1, 0).tensor("", {4}, 0, 0).data(64), "not printable ASCII");
  refused(Image().head(1, 0).tensor(std::string(64, 'n'), {4}, 0, 0).data(64), "limit 63");
  const auto two = [](std::string_view name, uint64_t second, size_t n_data) {
    return Image().head(2, 0).tensor("a", {16}, 0, 32).tensor(name, {4}, 0, second).data(n_data);
  };
  EXPECT_EQ(problem(two("b", 96, 112)), "");
  refused(two("a", 96, 112), "'a' appears twice");
  refused(two("b", 64, 112), "overlaps the tensor before, which ends at 96");
  refused(two("b", 0, 112), "overlaps the tensor before");
}

TEST(Gguf, GettersTellKindsApart) {
  const Image image = Image()
                          .head(0, 9)
                          .key("u", GgufType::kU64)
                          .u64(~uint64_t{0})
                          .key("i", GgufType::kI8)
                          .put(int8_t{-5})
                          .key("f", GgufType::kF32)
                          .put(2.0f)
                          .key("nan", GgufType::kF32)
                          .put(std::nanf(""))
                          .key("b", GgufType::kBool)
                          .put(uint8_t{1})
                          .key("s", GgufType::kString)
                          .text("text")
                          .key("li", GgufType::kArray)
                          .u32(3)
                          .u64(2)
                          .put(int16_t{-1})
                          .put(int16_t{7})
                          .key("lf", GgufType::kArray)
                          .u32(6)
                          .u64(1)
                          .put(0.5f)
                          .key("ls", GgufType::kArray)
                          .u32(8)
                          .u64(2)
                          .text("a")
                          .text("");
  const auto parsed = parse(image.bytes());
  ASSERT_TRUE(parsed) << parsed.error().message;
  const GgufMetadata& keys = parsed->metadata;
  EXPECT_EQ(*keys.integer("i", -5, 0), -5);
  EXPECT_EQ(keys.integer("i", 0, 9).error().message,
            "key 'i' is i8 -5, expected an integer in [0, 9]");
  EXPECT_FALSE(keys.integer("u", INT64_MIN, INT64_MAX));
  EXPECT_FALSE(keys.integer("f", 0, 9)) << "a float is no integer";
  EXPECT_FALSE(keys.integer("b", 0, 9));
  EXPECT_FALSE(keys.integer_or("s", 0, 9, 1)) << "a wrong type is not an absent key";
  EXPECT_EQ(*keys.integer_or("absent", 0, 9, 1), 1);
  EXPECT_EQ(*keys.number("f"), 2.0);
  EXPECT_FALSE(keys.number("nan"));
  EXPECT_FALSE(keys.number("i")) << "an integer is no float";
  EXPECT_EQ(*keys.number_or("absent", 0.25), 0.25);
  EXPECT_TRUE(*keys.boolean_or("b", false));
  EXPECT_FALSE(keys.boolean_or("i", false).has_value());
  EXPECT_EQ(*keys.string("s"), "text");
  EXPECT_FALSE(keys.string("f"));
  EXPECT_EQ(*keys.integers("li"), (std::vector<int64_t>{-1, 7}));
  EXPECT_FALSE(keys.integers("lf"));
  EXPECT_FALSE(keys.integers("ls"));
  EXPECT_FALSE(keys.integers("i"));
  EXPECT_EQ(*keys.floats("lf"), (std::vector<float>{0.5f}));
  EXPECT_FALSE(keys.floats("li"));
  EXPECT_EQ(keys.strings("ls")->size(), 2u);
  EXPECT_FALSE(keys.strings("li"));
  EXPECT_FALSE(keys.strings("absent"));
}

}  // namespace
}  // namespace quern
