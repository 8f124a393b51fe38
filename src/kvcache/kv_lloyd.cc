// SPDX-License-Identifier: Apache-2.0
// lloyd: the levels of Lloyd and Max for a Gaussian, one scale per position and head (TurboQuant,
// arXiv 2504.19874, its form for least squared error; the same core is in DRIVE and EDEN). The
// coordinates of a rotated head are close to Gaussian, so the table needs no search: it is meant
// with rotate=true. Levels are whole numbers, the largest 127: of the table that is within 1/254 of
// its largest level.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/float_types.h"
#include "codecs/level_tables.h"
#include "kernels/kernels.h"
#include "kernels/level_codes.h"
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
        step_(kLloydLevels[bits_ - 1].back() / 127) {
    for (int c = 0; c < 1 << bits_; ++c) {
      const int level = static_cast<int>(std::nearbyint(kLloydLevels[bits_ - 1][c] / step_));
      signed_[c] = static_cast<uint8_t>(level);
      unsigned_[c] = static_cast<uint8_t>(level + kZero);
      levels_[c] = static_cast<float>(level) * step_;
    }
    for (int c = 0; c + 1 < 1 << bits_; ++c) borders_[c] = (levels_[c] + levels_[c + 1]) / 2;
  }

  std::string spec() const override { return spec_; }

  Status check(KvSide /*side*/, int64_t d_head) const override {
    return check_coded_head(spec_, d_head);
  }

  int64_t page_bytes(KvSide /*side*/, int64_t d_head) const override {
    return code_bytes(d_head) + 2 * kKeyBlock;
  }

  void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const override {
    std::fill_n(page, code_bytes(d_head), std::byte{0});
    for (int64_t p = 0; p < kKeyBlock; ++p) encode_position(side, d_head, x, p, page);
  }

  // Both sides share a scale among the d_head numbers of a position.
  KvOperand read(KvSide side, int64_t d_head, const std::byte* page, const std::byte* next,
                 const KvScratch& scratch) const override {
    const bool is_keys = side == KvSide::kKeys;
    LevelBlock& block = *scratch.block;
    const uint8_t* table = (is_keys ? unsigned_ : signed_).data();
    block = {.levels = {bits_, kKeyBlock * d_head, page, table}, .scales = scratch.scales};
    block.rows = is_keys ? d_head : kKeyBlock;
    block.cols = is_keys ? kKeyBlock : d_head;
    block.group = d_head;
    block.share = is_keys ? LevelBlock::Share::kDown : LevelBlock::Share::kAcross;
    block.sign = is_keys ? LevelBlock::Sign::kSigned : LevelBlock::Sign::kUnsigned;
    block.zero = is_keys ? kZero : 0;
    block.next = next;
    block.n_next = page_bytes(side, d_head);
    kernels().f16_to_float(page + code_bytes(d_head), kKeyBlock, scratch.scales);
    kernels().scale(step_, kKeyBlock, scratch.scales);
    return {.levels = &block};
  }

 private:
  static constexpr int kZero = 128;

  // A page: codes as in level_codes.h, in the order of level_place, then the scale of each
  // position, F16 [kKeyBlock].
  int64_t code_bytes(int64_t d_head) const { return level_code_bytes(bits_, kKeyBlock * d_head); }

  void encode_position(KvSide side, int64_t d_head, const float* x, int64_t p,
                       std::byte* page) const {
    const bool is_keys = side == KvSide::kKeys;
    const int64_t first = is_keys ? p : p * d_head, step = is_keys ? kKeyBlock : 1;
    double energy = 0;
    for (int64_t i = 0; i < d_head; ++i) {
      const double value = x[first + i * step];
      energy += value * value;
    }
    const auto n = static_cast<double>(d_head);
    const auto to_unit = static_cast<float>(energy > 0 ? std::sqrt(n / energy) : 0);
    double product = 0, level_energy = 0;
    for (int64_t i = 0; i < d_head; ++i) {
      const float value = x[first + i * step], unit = value * to_unit;
      int code = 0;
      for (int c = 0; c + 1 < 1 << bits_; ++c) code += unit > borders_[c] ? 1 : 0;
      const int64_t place = is_keys ? level_place(kKeyBlock, i, p) : level_place(d_head, p, i);
      put_level_code(bits_, kKeyBlock * d_head, place, code, page);
      const double level = levels_[code];
      product += value * level;
      level_energy += level * level;
    }
    double scale = keeps_norm_ ? std::sqrt(energy / level_energy) : product / level_energy;
    // Levels below the numbers can ask for more than the largest half; no number stays none.
    if (scale > kLargestHalf && std::isfinite(energy)) scale = kLargestHalf;
    put_half(page + code_bytes(d_head), p, static_cast<float>(scale));
  }

  std::string spec_;
  int bits_;
  bool keeps_norm_;
  float step_;                                     // of a level
  std::array<uint8_t, 16> signed_{}, unsigned_{};  // levels as int8_t, and kZero more
  std::array<float, 16> levels_{};
  std::array<float, 15> borders_{};  // between a level and the next
};

constexpr std::string_view kExamples[] = {"lloyd(4)", "lloyd(3)", "lloyd(2, scale=least)",
                                          "lloyd(1)"};

}  // namespace

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
