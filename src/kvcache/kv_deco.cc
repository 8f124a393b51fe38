// SPDX-License-Identifier: Apache-2.0
// deco: codes of another codec in another basis (DecoQuant, arXiv 2405.12591). Blocks of m
// channels of all positions and heads are the rows of a matrix M = U S V'; with a the split,
//   M = T_L T_S,   T_L = U S^a,   T_S = S^(1-a) V'    [m, m]
// The large factor T_L is coded, the small one is kept as halves. Nothing is cut off. T_S comes
// from the first page of a text, of all heads, and stays: every position is then T_L = x T_S^-1 by
// itself. Products meet T_S in queries and in sums of values, not in pages
// (kernels/block_factor.h).
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/float_types.h"
#include "kernels/kernels.h"
#include "kvcache/kv_codec.h"
#include "linalg/decompose.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"codec", ParamKind::kCall, "", 0, 0, "", "of the large factor"},
    {"block", ParamKind::kInt, "16", 1, 64, "",
     "channels that change together, a divisor of a head"},
    {"split", ParamKind::kNumber, "0.5", 0, 1, "", "share of the spectrum in the large factor"},
};

constexpr double kLeast = 1e-6;  // of singular values, in parts of the largest

class KvDeco : public KvUnfitted {
 public:
  KvDeco(const spec::Params& params, std::string text, std::shared_ptr<const KvCodec> codec)
      : spec_(std::move(text)),
        codec_(std::move(codec)),
        block_(params.integer("block")),
        split_(params.number("split")) {}

  std::string spec() const override { return spec_; }
  KvTables tables() const override { return KvTables::kOfText; }
  bool is_bare() const override { return false; }

  Status check(KvSide side, int64_t d_head) const override {
    if (d_head % block_ != 0) {
      return error("kv: {} cannot change heads of {} dimensions: its blocks do not divide them",
                   spec_, d_head);
    }
    return codec_->check(side, d_head);
  }
  int64_t page_bytes(KvSide side, int64_t d_head) const override {
    return codec_->page_bytes(side, d_head);
  }

  // T_S [block, block], numbers that halves hold. What is no number counts as 0.
  Result<std::vector<float>> fit(const KvFitRows& rows) const override;
  Result<std::shared_ptr<const KvCodec>> with_tables(const KvFitRows& layer, int64_t head,
                                                     std::span<const float> tables) const override;

 protected:
  const std::string spec_;
  const std::shared_ptr<const KvCodec> codec_;
  const int64_t block_;
  const double split_;
};

Result<std::vector<float>> KvDeco::fit(const KvFitRows& rows) const {
  Matrix<double> gram(block_, block_);
  for (int64_t i = 0; i < rows.x.rows; ++i) {
    for (int64_t first = 0; first < rows.x.cols; first += block_) {
      const float* x = rows.x.row(i) + first;
      for (int64_t a = 0; a < block_; ++a) {
        for (int64_t b = 0; b < block_ && std::isfinite(x[a]); ++b) {
          if (std::isfinite(x[b])) gram(a, b) += static_cast<double>(x[a]) * x[b];
        }
      }
    }
  }
  QUERN_ASSIGN(const SymmetricEigen eigen, eigen_symmetric(gram.view()));
  const double largest = std::sqrt(std::max(0.0, eigen.values[0]));
  std::vector<float> small(static_cast<size_t>(block_ * block_));
  for (int64_t i = 0; i < block_; ++i) {
    const double value = std::sqrt(std::max(0.0, eigen.values[static_cast<size_t>(i)]));
    // In parts of the largest, so that halves hold them whatever the size of numbers.
    const double part = largest > 0 ? std::max(kLeast, value / largest) : 1;
    for (int64_t j = 0; j < block_; ++j) {
      const double entry = std::pow(part, 1 - split_) * eigen.vectors(j, i);
      small[static_cast<size_t>(i * block_ + j)] =
          f16_to_float(float_to_f16(static_cast<float>(entry)));
    }
  }
  return small;
}

// [n, n] in row-major order.
std::vector<float> turned(const std::vector<float>& x, int64_t n) {
  std::vector<float> y;
  for (int64_t i = 0; i < n * n; ++i) y.push_back(x[static_cast<size_t>(i % n * n + i / n)]);
  return y;
}

class KvDecoFitted final : public KvDeco {
 public:
  // small and its inverse [block, block]
  KvDecoFitted(const KvDeco& codec, KvSide side, std::vector<float> small,
               std::vector<float> inverse)
      : KvDeco(codec),
        is_of_keys_(side == KvSide::kKeys),
        small_(std::move(small)),
        turned_small_(turned(small_, block_)),
        inverse_(std::move(inverse)),
        turned_inverse_(turned(inverse_, block_)) {}
  KvDecoFitted(const KvDecoFitted&) = delete;  // its factor points into it

  void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const override {
    std::vector<float> large(x, x + kKeyBlock * d_head);
    const BlockFactor back{block_, is_of_keys_, inverse_.data(), turned_inverse_.data()};
    multiply_block(back, kKeyBlock, d_head, large.data(), kernels());
    codec_->encode(side, d_head, large.data(), page);
  }

  // Levels stay as they are; what else a codec reads is multiplied here.
  KvOperand read(KvSide side, int64_t d_head, const std::byte* page, const std::byte* next,
                 const KvScratch& scratch) const override {
    KvOperand large = codec_->read(side, d_head, page, next, scratch);
    if (large.levels != nullptr) {
      large.factor = &factor_;
      return large;
    }
    const int64_t n = kKeyBlock * d_head;
    const float* floats = floats_of(large, n, scratch.floats);
    if (floats != scratch.floats) std::copy_n(floats, n, scratch.floats);
    multiply_block(factor_, kKeyBlock, d_head, scratch.floats, kernels());
    return {.floats = scratch.floats};
  }

 private:
  bool is_of_keys_;
  std::vector<float> small_, turned_small_, inverse_, turned_inverse_;
  BlockFactor factor_{block_, is_of_keys_, small_.data(), turned_small_.data()};
};

Result<std::shared_ptr<const KvCodec>> KvDeco::with_tables(const KvFitRows& layer, int64_t /*head*/,
                                                           std::span<const float> tables) const {
  if (static_cast<int64_t>(tables.size()) != block_ * block_) {
    return error("kv: {}: {} numbers in its tables, expected {}", spec_, tables.size(),
                 block_ * block_);
  }
  Matrix<double> small(block_, block_);
  for (int64_t i = 0; i < block_ * block_; ++i) {
    const float value = tables[static_cast<size_t>(i)];
    if (!(std::fabs(value) <= 65504))
      return error("kv: {}: tables with numbers that are none", spec_);
    small.data()[i] = value;
  }
  QUERN_ASSIGN(const Matrix<double> inverse, quern::inverse(small.view()));
  std::vector<float> back;
  for (int64_t i = 0; i < block_ * block_; ++i)
    back.push_back(static_cast<float>(inverse.data()[i]));
  return std::make_shared<const KvDecoFitted>(
      *this, layer.side, std::vector<float>(tables.begin(), tables.end()), std::move(back));
}

constexpr std::string_view kExamples[] = {
    "deco(int(4, group=256))", "deco(int(2), block=8, split=0)", "deco(lloyd(3), split=1)"};

}  // namespace

extern const KvCodecInfo kv_deco_codec_info;
const KvCodecInfo kv_deco_codec_info = {
    .name = "deco",
    .params = kParams,
    .summary = "codes of the large factor of two (DecoQuant)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvCodec>> {
      QUERN_ASSIGN(std::unique_ptr<KvCodec> codec, make_kv_codec(params.call("codec")));
      if (codec->tables() != KvTables::kNone) {
        return usage_error("kv: deco({}): expected a codec without tables", codec->spec());
      }
      QUERN_ASSIGN(std::string text, params.text_around(codec->spec()));
      return std::make_unique<KvDeco>(params, std::move(text), std::move(codec));
    },
    .examples = kExamples,
};

}  // namespace quern
