// SPDX-License-Identifier: Apache-2.0
// int: asymmetric whole numbers of 1 to 4 or 8 bits (KIVI, arXiv 2402.02750; the cache of QuaRot,
// arXiv 2404.00456). A scale and a least value, both halves, are shared by `group` neighbours:
//   per=channel   positions of one channel: a key's few large channels stay apart;
//   per=token     channels of one position: what values want, which are summed over positions.
// A group's numbers are rounded with the scale and the least value as stored.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/float_types.h"
#include "kernels/kernels.h"
#include "kernels/level_codes.h"
#include "kvcache/kv_codec.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kInt, "", 1, 8, "", "of a code: 1, 2, 3, 4 or 8"},
    {"per", ParamKind::kChoice, "token", 0, 0, "token|channel", "whose numbers share a scale"},
    {"group", ParamKind::kInt, "32", 16, 256, "", "numbers that share a scale, at most a head's"},
    {"clip", ParamKind::kNumber, "1", 0.5, 1, "", "share of the least and the largest kept"},
};

constexpr int64_t kUnit = 16;

// A page: codes, then scales and least values, both F16 [n_params]. Codes lie as in level_codes.h,
// in the order of level_place; those of values at 8 bits less 128.
struct PageShape {
  int bits = 0;
  int64_t rows = 0, cols = 0, group = 0;
  bool is_across = true;  // scales as LevelBlock::Share says
  bool is_signed = false;

  int64_t size() const { return rows * cols; }
  int64_t n_params() const { return size() / group; }
  int64_t code_bytes() const { return level_code_bytes(bits, size()); }
  int64_t page_bytes() const { return code_bytes() + n_params() * 4; }
};

class KvInt final : public KvCodec {
 public:
  explicit KvInt(const spec::Params& params)
      : spec_(print(params.canonical())),
        bits_(static_cast<int>(params.integer("bits"))),
        is_per_channel_(params.word("per") == "channel"),
        group_(params.integer("group")),
        clip_(static_cast<float>(params.number("clip"))) {}

  std::string spec() const override { return spec_; }

  Status check(KvSide /*side*/, int64_t d_head) const override {
    const int64_t n = is_per_channel_ ? kKeyBlock : d_head;
    if (d_head % kUnit != 0 || d_head > kMostLevelRows || n % std::min(group_, n) != 0) {
      return error("kv: {} cannot code heads of {} dimensions: its groups do not divide {}", spec_,
                   d_head, n);
    }
    return {};
  }

  int64_t page_bytes(KvSide side, int64_t d_head) const override {
    return shape(side, d_head).page_bytes();
  }

  void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const override {
    const PageShape s = shape(side, d_head);
    std::fill_n(page, s.code_bytes(), std::byte{0});
    for (int64_t p = 0; p < s.n_params(); ++p) encode_group(s, x, p, page);
  }

  KvOperand read(KvSide side, int64_t d_head, const std::byte* page, const std::byte* next,
                 const KvScratch& scratch) const override {
    const PageShape s = shape(side, d_head);
    const bool is_keys = side == KvSide::kKeys;
    LevelBlock& block = *scratch.block;
    block = {
        .levels = {bits_, s.size(), page}, .scales = scratch.scales, .centres = scratch.centres};
    block.rows = s.rows;
    block.cols = s.cols;
    block.group = s.group;
    block.share = s.is_across ? LevelBlock::Share::kAcross : LevelBlock::Share::kDown;
    block.sign = is_keys ? LevelBlock::Sign::kSigned : LevelBlock::Sign::kUnsigned;
    block.zero = s.is_signed ? 0 : middle();
    block.planes = bits_ == 8 ? 2 : 1;
    block.next = next;
    block.n_next = s.page_bytes();
    const std::byte* scales = page + s.code_bytes();
    kernels().f16_to_float(scales, s.n_params(), scratch.scales);
    kernels().f16_to_float(scales + 2 * s.n_params(), s.n_params(), scratch.centres);
    kernels().axpy(static_cast<float>(middle()), scratch.scales, s.n_params(), scratch.centres);
    return {.levels = &block};
  }

 private:
  // About which codes lie: what a code is less of is rounded least.
  int middle() const { return 1 << (bits_ - 1); }

  PageShape shape(KvSide side, int64_t d_head) const {
    const bool is_keys = side == KvSide::kKeys;
    PageShape s{bits_, is_keys ? d_head : kKeyBlock, is_keys ? kKeyBlock : d_head};
    s.group = std::min(group_, is_per_channel_ ? kKeyBlock : d_head);
    s.is_across = is_keys == is_per_channel_;
    s.is_signed = !is_keys && bits_ == 8;
    return s;
  }

  void encode_group(const PageShape& s, const float* x, int64_t p, std::byte* codes) const {
    std::byte* scales = codes + s.code_bytes();
    std::byte* least = scales + 2 * s.n_params();
    // The group's first number, and the way to the next.
    const int64_t row = s.is_across ? p % s.rows : p / s.cols * s.group;
    const int64_t col = s.is_across ? p / s.rows * s.group : p % s.cols;
    const int64_t down = s.is_across ? 0 : 1, across = 1 - down;
    const auto at = [&](int64_t i) { return (row + i * down) * s.cols + col + i * across; };
    float low = x[at(0)], high = low;
    for (int64_t i = 1; i < s.group; ++i) {
      low = std::min(low, x[at(i)]);
      high = std::max(high, x[at(i)]);
    }
    low *= clip_;
    high *= clip_;
    const int most = (1 << s.bits) - 1;
    put_half(least, p, low);
    put_half(scales, p, (high - low) / static_cast<float>(most));
    const float scale = half_at(scales, p), base = half_at(least, p);
    for (int64_t i = 0; i < s.group; ++i) {
      const float level = scale > 0 ? (x[at(i)] - base) / scale : 0;
      const int code = nearest_code(level, most) ^ (s.is_signed ? 128 : 0);
      const int64_t place = level_place(s.cols, row + i * down, col + i * across);
      put_level_code(s.bits, s.size(), place, code, codes);
    }
  }

  // Ties to even; what is no number becomes 0.
  static int nearest_code(float level, int most) {
    constexpr float kToWhole = 0x1.8p23f;  // added, it leaves no place behind the point
    const float cut = level > 0 ? std::min(level, static_cast<float>(most)) : 0.0f;
    return static_cast<int>(cut + kToWhole - kToWhole);
  }

  std::string spec_;
  int bits_;
  bool is_per_channel_;
  int64_t group_;
  float clip_;
};

constexpr std::string_view kExamples[] = {"int(8)",
                                          "int(4)",
                                          "int(4, group=128, clip=0.95)",
                                          "int(3, per=channel, group=64)",
                                          "int(2, per=channel)",
                                          "int(2, group=64)",
                                          "int(1, per=channel, group=16)"};

}  // namespace

extern const KvCodecInfo kv_int_codec_info;
const KvCodecInfo kv_int_codec_info = {
    .name = "int",
    .params = kParams,
    .summary = "whole numbers with a scale and a least value per group",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvCodec>> {
      const int64_t bits = params.integer("bits");
      if (bits > 4 && bits < 8) {
        return usage_error("kv: int: bits is {}, expected 1, 2, 3, 4 or 8", bits);
      }
      if (params.integer("group") % kUnit != 0) {
        return usage_error("kv: int: group is {}, expected a multiple of {}",
                           params.integer("group"), kUnit);
      }
      return std::make_unique<KvInt>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
