// SPDX-License-Identifier: Apache-2.0
// gear: codes of another codec, and of what they leave over a product of low rank and the largest
// numbers (GEAR, arXiv 2403.05527). A page is its chunk, 64 positions of one head. With x the page
// (keys [d_head, 64], a vector per channel; values [64, d_head], a vector per position):
//   S   the places without which the ranges of the vectors are narrowest; the codec sees the mean
//   of
//       the rest of the vector there
//   D   what the codec makes of that
//   L   the best product of `rank` pairs for x - D, zero at S, by power iteration
//   x^ = D + L + (x - D - L at S)
// Means, not zeros, are put in place of outliers: zeros would widen vectors with an offset.
#include <algorithm>
#include <cmath>

#include "kvcache/kv_codec.h"
#include "kvcache/kv_correction.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"codec", ParamKind::kCall, "", 0, 0, "", "whose codes are corrected"},
    {"rank", ParamKind::kInt, "2", 0, kMostKvRank, "", "pairs of factors of a page"},
    {"outliers", ParamKind::kNumber, "2", 0, kMostKvOutliers, "", "percent kept beside the codes"},
};

class KvGear final : public KvCodec {
 public:
  KvGear(const spec::Params& params, std::string text, std::unique_ptr<KvCodec> codec)
      : spec_(std::move(text)),
        codec_(std::move(codec)),
        rank_(params.integer("rank")),
        percent_(params.number("outliers")) {}

  std::string spec() const override { return spec_; }
  bool is_bare() const override { return false; }

  Status check(KvSide side, int64_t d_head) const override {
    if (rank_ > d_head) {
      return error("kv: {} for heads of {} dimensions: its rank is larger", spec_, d_head);
    }
    return codec_->check(side, d_head);
  }

  int64_t page_bytes(KvSide side, int64_t d_head) const override {
    return codec_->page_bytes(side, d_head) + shape(side, d_head).n_bytes();
  }

  void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const override {
    const KvCorrectionShape s = shape(side, d_head);
    const auto n = static_cast<size_t>(s.rows * s.cols);
    const std::vector<uint16_t> places = choose_outliers(x, s.rows, s.cols, s.n_entries);
    std::vector<float> rest(x, x + n), coded(n);
    fill_with_means(s, places, rest);
    codec_->encode(side, d_head, rest.data(), page);
    if (s.n_bytes() == 0) return;
    KvScratchMemory scratch;
    const KvOperand read = codec_->read(side, d_head, page, nullptr, scratch.view(d_head));
    const float* floats = floats_of(read, s.rows * s.cols, coded.data());
    for (size_t i = 0; i < n; ++i) rest[i] = x[i] - floats[i];
    std::vector<float> deltas(places.size());
    for (size_t i = 0; i < places.size(); ++i) std::swap(deltas[i], rest[places[i]]);
    std::vector<float> left(static_cast<size_t>(s.rank * s.rows));
    std::vector<float> right(static_cast<size_t>(s.rank * s.cols));
    low_rank(rest.data(), s.rows, s.cols, s.rank, left.data(), right.data());
    for (size_t i = 0; i < places.size(); ++i) {
      const int64_t row = places[i] / s.cols, col = places[i] % s.cols;
      for (int64_t k = 0; k < s.rank; ++k) {
        deltas[i] -= left[static_cast<size_t>(k * s.rows + row)] *
                     right[static_cast<size_t>(k * s.cols + col)];
      }
    }
    put_correction(s, {left, right, deltas, places}, page + codec_->page_bytes(side, d_head));
  }

  KvOperand read(KvSide side, int64_t d_head, const std::byte* page, const std::byte* next,
                 const KvScratch& scratch) const override {
    KvOperand read = codec_->read(side, d_head, page, next, scratch);
    const KvCorrectionShape s = shape(side, d_head);
    if (s.n_bytes() == 0) return read;
    read_correction(s, page + codec_->page_bytes(side, d_head), scratch);
    read.added = scratch.correction;
    return read;
  }

 private:
  KvCorrectionShape shape(KvSide side, int64_t d_head) const {
    const bool is_keys = side == KvSide::kKeys;
    return {is_keys ? d_head : kKeyBlock, is_keys ? kKeyBlock : d_head, rank_,
            outlier_count(percent_, kKeyBlock * d_head)};
  }

  static void fill_with_means(const KvCorrectionShape& s, std::span<const uint16_t> places,
                              std::vector<float>& x) {
    for (size_t i = 0; i < places.size();) {
      const int64_t row = places[i] / s.cols;
      size_t end = i;
      while (end < places.size() && places[end] / s.cols == row) ++end;
      const auto begin = x.begin() + row * s.cols;
      double sum = 0;
      for (int64_t j = 0; j < s.cols; ++j) sum += begin[j];
      for (size_t e = i; e < end; ++e) sum -= x[places[e]];
      const auto n_rest = static_cast<double>(s.cols - static_cast<int64_t>(end - i));
      for (; i < end; ++i) x[places[i]] = static_cast<float>(sum / n_rest);
    }
  }

  std::string spec_;
  std::unique_ptr<KvCodec> codec_;
  int64_t rank_;
  double percent_;
};

constexpr std::string_view kExamples[] = {"gear(int(2, per=channel, group=64))",
                                          "gear(int(4), rank=4, outliers=0)",
                                          "gear(lloyd(2), rank=0, outliers=1)"};

}  // namespace

extern const KvCodecInfo kv_gear_codec_info;
const KvCodecInfo kv_gear_codec_info = {
    .name = "gear",
    .params = kParams,
    .summary = "codes of another codec, low rank and outliers (GEAR)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvCodec>> {
      QUERN_ASSIGN(std::unique_ptr<KvCodec> codec, make_kv_codec(params.call("codec")));
      if (!codec->is_bare()) {
        return usage_error("kv: gear({}): expected a codec of nothing but levels", codec->spec());
      }
      QUERN_ASSIGN(std::string text, params.text_around(codec->spec()));
      return std::make_unique<KvGear>(params, std::move(text), std::move(codec));
    },
    .examples = kExamples,
};

}  // namespace quern
