// SPDX-License-Identifier: Apache-2.0
// int: asymmetric whole numbers of 1 to 4 or 8 bits (KIVI, arXiv 2402.02750; the cache of QuaRot,
// arXiv 2404.00456). A scale and a least value, both halves, are shared by `group` neighbours:
//   per=channel   positions of one channel: a key's few large channels stay apart;
//   per=token     channels of one position: what values want, which are summed over positions.
// A group's numbers are rounded with the scale and the least value as stored.
#include "kvcache/kv_int.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/float_types.h"
#include "kernels/kernels.h"
#include "kvcache/kv_codec.h"
#include "kvcache/kv_codes.h"

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
    if (d_head % kUnit != 0 || n % std::min(group_, n) != 0) {
      return error("kv: {} cannot code heads of {} dimensions: its groups do not divide {}", spec_,
                   d_head, n);
    }
    return {};
  }

  int64_t page_bytes(KvSide side, int64_t d_head) const override {
    return shape(side, d_head).page_bytes();
  }

  void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const override {
    const KvIntShape s = shape(side, d_head);
    std::fill_n(page, s.code_bytes(), std::byte{0});
    const int64_t step = s.is_along_rows ? 1 : s.cols;
    for (int64_t p = 0; p < s.n_params(); ++p) {
      const int64_t per_row = s.is_along_rows ? s.cols / s.group : s.cols;
      const int64_t first = s.is_along_rows ? p / per_row * s.cols + p % per_row * s.group
                                            : p / per_row * s.group * s.cols + p % per_row;
      encode_group(s, x, p, first, step, page);
    }
  }

  void decode(KvSide side, int64_t d_head, const std::byte* page, float* x) const override {
    const auto run = kernels().isa == Isa::kAvx512 ? decode_kv_int_avx512 : decode_kv_int_ref;
    run(shape(side, d_head), page, x);
  }

 private:
  KvIntShape shape(KvSide side, int64_t d_head) const {
    const bool is_keys = side == KvSide::kKeys;
    KvIntShape s{bits_, is_keys ? d_head : kKeyBlock, is_keys ? kKeyBlock : d_head};
    s.group = std::min(group_, is_per_channel_ ? kKeyBlock : d_head);
    s.is_along_rows = is_keys == is_per_channel_;
    return s;
  }

  // Group p, whose numbers are `step` apart from `first` on.
  void encode_group(const KvIntShape& s, const float* x, int64_t p, int64_t first, int64_t step,
                    std::byte* codes) const {
    std::byte* scales = codes + s.code_bytes();
    std::byte* least = scales + 2 * s.n_params();
    float low = x[first], high = x[first];
    for (int64_t i = 1; i < s.group; ++i) {
      low = std::min(low, x[first + i * step]);
      high = std::max(high, x[first + i * step]);
    }
    low *= clip_;
    high *= clip_;
    const int most = (1 << s.bits) - 1;
    put_half(least, p, low);
    put_half(scales, p, (high - low) / static_cast<float>(most));
    const float scale = half_at(scales, p), base = half_at(least, p);
    for (int64_t i = 0; i < s.group; ++i) {
      const float level = scale > 0 ? (x[first + i * step] - base) / scale : 0;
      put_kv_code(s.bits, s.rows * s.cols, first + i * step, nearest_code(level, most), codes);
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

void decode_kv_int_ref(const KvIntShape& s, const std::byte* page, float* x) {
  const std::byte* scales = page + s.code_bytes();
  const std::byte* least = scales + 2 * s.n_params();
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t j = 0; j < s.cols; ++j) {
      const int64_t p =
          s.is_along_rows ? i * (s.cols / s.group) + j / s.group : i / s.group * s.cols + j;
      const auto code =
          static_cast<float>(kv_code_at(s.bits, s.rows * s.cols, page, i * s.cols + j));
      x[i * s.cols + j] = std::fma(code, half_at(scales, p), half_at(least, p));
    }
  }
}

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
