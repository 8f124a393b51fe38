// SPDX-License-Identifier: Apache-2.0
// lloyd: the levels of Lloyd and Max for a Gaussian, one scale per position and head (TurboQuant,
// arXiv 2504.19874, its form for least squared error; the same core is in DRIVE and EDEN). The
// coordinates of a rotated head are close to Gaussian, so the table needs no search: it is meant
// with rotate=true.
#include "kvcache/kv_lloyd.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/float_types.h"
#include "codecs/level_tables.h"
#include "kernels/kernels.h"
#include "kvcache/kv_codec.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kInt, "", 1, 4, "", "of a code"},
    {"scale", ParamKind::kChoice, "norm", 0, 0, "norm|least", "keeps the norm, or is fitted"},
};

constexpr double kLargestHalf = 65504;

class KvLloyd final : public KvCodec {
 public:
  explicit KvLloyd(const spec::Params& params)
      : spec_(print(params.canonical())),
        bits_(static_cast<int>(params.integer("bits"))),
        keeps_norm_(params.word("scale") == "norm"),
        levels_(kLloydLevels[bits_ - 1].data()) {
    for (int c = 0; c + 1 < 1 << bits_; ++c) borders_[c] = (levels_[c] + levels_[c + 1]) / 2;
  }

  std::string spec() const override { return spec_; }

  Status check(KvSide /*side*/, int64_t d_head) const override {
    if (d_head % 16 != 0) {
      return error("kv: {} cannot code heads of {} dimensions: no multiple of 16", spec_, d_head);
    }
    return {};
  }

  int64_t page_bytes(KvSide side, int64_t d_head) const override {
    return shape(side, d_head).page_bytes();
  }

  void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const override {
    const KvLloydShape s = shape(side, d_head);
    std::fill_n(page, s.code_bytes(), std::byte{0});
    for (int64_t p = 0; p < kKeyBlock; ++p) encode_position(s, x, p, page);
  }

  void decode(KvSide side, int64_t d_head, const std::byte* page, float* x) const override {
    const auto run = kernels().isa == Isa::kAvx512 ? decode_kv_lloyd_avx512 : decode_kv_lloyd_ref;
    run(shape(side, d_head), levels_, page, x);
  }

 private:
  KvLloydShape shape(KvSide side, int64_t d_head) const {
    return {bits_, d_head, side == KvSide::kKeys};
  }

  void encode_position(const KvLloydShape& s, const float* x, int64_t p, std::byte* page) const {
    const int64_t first = s.is_turned ? p : p * s.d_head, step = s.is_turned ? kKeyBlock : 1;
    double energy = 0;
    for (int64_t i = 0; i < s.d_head; ++i) {
      const double value = x[first + i * step];
      energy += value * value;
    }
    const auto n = static_cast<double>(s.d_head);
    const auto to_unit = static_cast<float>(energy > 0 ? std::sqrt(n / energy) : 0);
    double product = 0, level_energy = 0;
    for (int64_t i = 0; i < s.d_head; ++i) {
      const float value = x[first + i * step], unit = value * to_unit;
      int code = 0;
      for (int c = 0; c + 1 < 1 << bits_; ++c) code += unit > borders_[c] ? 1 : 0;
      put_kv_code(bits_, s.size(), first + i * step, code, page);
      const double level = levels_[code];
      product += value * level;
      level_energy += level * level;
    }
    double scale = keeps_norm_ ? std::sqrt(energy / level_energy) : product / level_energy;
    // Levels below the numbers can ask for more than the largest half; no number stays none.
    if (scale > kLargestHalf && std::isfinite(energy)) scale = kLargestHalf;
    put_half(page + s.code_bytes(), p, static_cast<float>(scale));
  }

  std::string spec_;
  int bits_;
  bool keeps_norm_;
  const float* levels_;
  std::array<float, 15> borders_{};  // between a level and the next
};

constexpr std::string_view kExamples[] = {"lloyd(4)", "lloyd(3)", "lloyd(2, scale=least)",
                                          "lloyd(1)"};

}  // namespace

void decode_kv_lloyd_ref(const KvLloydShape& s, const float* levels, const std::byte* page,
                         float* x) {
  const std::byte* scales = page + s.code_bytes();
  for (int64_t at = 0; at < s.size(); ++at) {
    const int64_t p = s.is_turned ? at % kKeyBlock : at / s.d_head;
    x[at] = half_at(scales, p) * levels[kv_code_at(s.bits, s.size(), page, at)];
  }
}

extern const KvCodecInfo kv_lloyd_codec_info;
const KvCodecInfo kv_lloyd_codec_info = {
    .name = "lloyd",
    .params = kParams,
    .summary = "levels of a Gaussian with a scale per position and head (TurboQuant)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvCodec>> {
      return std::make_unique<KvLloyd>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
