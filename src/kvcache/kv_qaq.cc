// SPDX-License-Identifier: Apache-2.0
// qaq: so many bits for each position as attention needs (QAQ, arXiv 2403.04643).
//
// Of an output of attention X = sum_t S_t V_t an error of standard deviation sigma in V_t shows as
// S_t sigma, so that each of T positions may have sigma_V(t) = sigma_X / (sqrt(T) S_t). An error of
// variance sigma^2 in a key gives its score the variance v = |q|^2 sigma^2, and a weight near 1 / T
// the variance (T - 1) / T^3 (exp(v) - 1), so that sigma_K^2 = ln(T^3 / (T - 1) sigma_S^2 + 1) /
// |q|^2. What a position may be off by becomes bits by its range: an even step of width
// range / 2^bits is off by step / sqrt(12).
//
// Steps of one width lie within those of the width before: a position becomes narrower by losing
// the last bits of its codes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/float_types.h"
#include "kernels/level_planes.h"
#include "kvcache/kv_codec.h"
#include "kvcache/kv_correction.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"error", ParamKind::kNumber, "", 0.01, 100000, "", "that is allowed, in percent"},
    {"low", ParamKind::kInt, "1", 0, 8, "", "least bits of a position"},
    {"high", ParamKind::kInt, "4", 1, 8, "", "most"},
    {"outliers", ParamKind::kNumber, "1", 0, kMostKvOutliers, "", "percent that stay halves"},
    {"rows", ParamKind::kInt, "64", 1, 64, "", "newest queries, which foretell attention"},
    {"again", ParamKind::kChoice, "true", 0, 0, "true|false", "later decisions narrow positions"},
};

constexpr uint8_t kZero = 128;
constexpr double kLargestHalf = 65504;

float near_half(double x) { return static_cast<float>(std::clamp(x, -kLargestHalf, kLargestHalf)); }

// A page: widths of the positions, 4 bits each; the root mean square of its numbers, F16; outliers
// as in kv_correction.h, themselves in place of differences; then for every position its centre,
// F16, and if it has a width its scale, F16, and its codes: planes of one bit from the highest
// down (kernels/level_planes.h).
struct PageShape {
  int64_t d_head = 0, n_outliers = 0;

  static constexpr int64_t kRms = kKeyBlock / 2, kOutliers = kRms + 2;
  int64_t records() const { return kOutliers + 4 * n_outliers; }
  int64_t record_bytes(int width) const {
    return width == 0 ? 2 : 4 + plane_row_bytes(width, d_head);
  }
};

int width_at(const std::byte* page, int64_t p) {
  return std::to_integer<int>(page[p / 2]) >> (p % 2 * 4) & 15;
}

// Numbers of a page by position [kKeyBlock, d_head]; what is none is 0.
std::vector<float> by_position(KvSide side, int64_t d, const float* x) {
  std::vector<float> rows(static_cast<size_t>(kKeyBlock * d));
  for (int64_t p = 0; p < kKeyBlock; ++p) {
    for (int64_t c = 0; c < d; ++c) {
      const float value = side == KvSide::kKeys ? x[c * kKeyBlock + p] : x[p * d + c];
      rows[static_cast<size_t>(p * d + c)] = std::isfinite(value) ? value : 0;
    }
  }
  return rows;
}

struct Range {
  double low = 0, high = 0, mean = 0;
};

// Codes of one position with their grid, as they are stored: x^ = scale (code - 2^(width-1)) +
// centre.
struct Record {
  int width = 0;
  float scale = 0, centre = 0;
  std::vector<uint8_t> codes;  // [d_head]; none at width 0

  static Record of(const float* x, int64_t d, const Range& range, int width);
  // The last `n` bits dropped.
  Record narrower(int n) const;
  void append(std::vector<std::byte>& page) const;
};

float as_half(float x) { return f16_to_float(float_to_f16(x)); }

Record Record::of(const float* x, int64_t d, const Range& range, int width) {
  Record record{width, 0, as_half(near_half(range.mean)), {}};
  if (width == 0) return record;
  const double middle = (range.low + range.high) / 2;
  record.scale = as_half(near_half(std::ldexp(range.high - range.low, -width)));
  record.centre = as_half(near_half(middle + record.scale / 2));
  const double most = (1 << width) - 1, half = 1 << (width - 1);
  record.codes.resize(static_cast<size_t>(d));
  for (int64_t i = 0; i < d && record.scale > 0; ++i) {
    const double level = (static_cast<double>(x[i]) - record.centre) / record.scale;
    const double code = std::clamp(std::nearbyint(level) + half, 0.0, most);
    record.codes[static_cast<size_t>(i)] = static_cast<uint8_t>(code);
  }
  return record;
}

Record Record::narrower(int n) const {
  Record record{width - n, 0, 0, {}};
  if (record.width == 0) {
    double sum = 0;
    for (const uint8_t code : codes) sum += code - (1 << (width - 1));
    record.centre = as_half(near_half(centre + scale * sum / static_cast<double>(codes.size())));
    return record;
  }
  const double middle = centre - scale / 2;
  record.scale = as_half(near_half(std::ldexp(scale, n)));
  record.centre = as_half(near_half(middle + record.scale / 2));
  for (const uint8_t code : codes) record.codes.push_back(static_cast<uint8_t>(code >> n));
  return record;
}

void Record::append(std::vector<std::byte>& page) const {
  const size_t at = page.size();
  const auto n = static_cast<int64_t>(codes.size());
  page.resize(at + (width == 0 ? 2 : 4 + static_cast<size_t>(plane_row_bytes(width, n))));
  put_half(page.data() + at, 0, centre);
  if (width == 0) return;
  put_half(page.data() + at, 1, scale);
  put_plane_row(width, codes.data(), n, page.data() + at + 4);
}

class KvQaq final : public KvCodec {
 public:
  explicit KvQaq(const spec::Params& params)
      : spec_(print(params.canonical())),
        error_(params.number("error") / 100),
        low_(static_cast<int>(params.integer("low"))),
        high_(static_cast<int>(params.integer("high"))),
        percent_(params.number("outliers")),
        rows_(params.integer("rows")),
        narrows_(params.flag("again")) {}

  std::string spec() const override { return spec_; }
  bool is_bare() const override { return false; }

  Status check(KvSide /*side*/, int64_t d_head) const override {
    return check_coded_head(spec_, d_head);
  }

  int64_t page_bytes(KvSide /*side*/, int64_t d_head) const override {
    const PageShape s = shape(d_head);
    return s.records() + kKeyBlock * s.record_bytes(high_);
  }

  void encode(KvSide side, int64_t d_head, const float* x, std::byte* page) const override {
    const std::vector<std::byte> bytes = encode_seen(side, d_head, x, {});
    std::copy(bytes.begin(), bytes.end(), page);
  }

  int64_t n_queries() const override { return rows_; }

  std::vector<std::byte> encode_seen(KvSide side, int64_t d, const float* x,
                                     const KvAttention& seen) const override {
    const PageShape s = shape(d);
    std::vector<float> rows = by_position(side, d, x);
    const std::vector<uint16_t> places = choose_outliers(rows.data(), kKeyBlock, d, s.n_outliers);
    std::vector<std::byte> page(static_cast<size_t>(s.records()));
    put_outliers(side, s, places, rows, page.data());
    const std::vector<Range> ranges = rest_of(s, places, rows);
    double energy = 0;
    for (const float value : rows) energy += static_cast<double>(value) * value;
    put_half(page.data() + PageShape::kRms, 0,
             near_half(std::sqrt(energy / static_cast<double>(rows.size()))));
    const double rms = half_at(page.data() + PageShape::kRms, 0);
    for (int64_t p = 0; p < kKeyBlock; ++p) {
      const Range& range = ranges[static_cast<size_t>(p)];
      const int width = width_for(range.high - range.low, allowed_step(side, seen, p, rms));
      Record::of(rows.data() + p * d, d, range, width).append(page);
      page[static_cast<size_t>(p / 2)] |= std::byte(width << (p % 2 * 4));
    }
    return page;
  }

  std::vector<std::byte> narrowed(KvSide side, int64_t d, const std::byte* page,
                                  const KvAttention& seen) const override {
    if (!narrows_) return {};
    const PageShape s = shape(d);
    const double rms = half_at(page + PageShape::kRms, 0);
    std::vector<std::byte> narrow(page, page + s.records());
    std::fill_n(narrow.begin(), PageShape::kRms, std::byte{0});
    bool has_changed = false;
    const std::byte* at = page + s.records();
    for (int64_t p = 0; p < kKeyBlock; ++p) {
      const int width = width_at(page, p);
      const double range = width == 0 ? 0 : std::ldexp(half_at(at, 1), width);
      const int wanted = width_for(range, allowed_step(side, seen, p, rms));
      const int left = std::min(width, wanted);
      if (left < width) {
        record_at(s, at, width).narrower(width - left).append(narrow);
        has_changed = true;
      } else {
        narrow.insert(narrow.end(), at, at + s.record_bytes(width));
      }
      narrow[static_cast<size_t>(p / 2)] |= std::byte(left << (p % 2 * 4));
      at += s.record_bytes(width);
    }
    return has_changed ? narrow : std::vector<std::byte>();
  }

  Result<int64_t> size_of(int64_t d, std::span<const std::byte> bytes) const override {
    const PageShape s = shape(d);
    int64_t size = s.records();
    const auto n = static_cast<int64_t>(bytes.size());
    for (int64_t p = 0; p < kKeyBlock && size <= n; ++p) {
      const int width = width_at(bytes.data(), p);
      if (width > high_) return error("a position of {} bits, expected at most {}", width, high_);
      size += s.record_bytes(width);
    }
    if (size > n) return error("a page of at least {} bytes, and {} are left", size, n);
    return size;
  }

  KvOperand read(KvSide side, int64_t d, const std::byte* page, const std::byte* next,
                 const KvScratch& scratch) const override {
    const PageShape s = shape(d);
    const bool is_keys = side == KvSide::kKeys;
    const std::span levels(scratch.levels, static_cast<size_t>(kKeyBlock * d));
    LevelBlock& block = *scratch.block;
    block = {.levels = {.n = kKeyBlock * d, .codes = std::as_bytes(levels).data()},
             .scales = scratch.scales,
             .centres = scratch.centres};
    block.rows = is_keys ? d : kKeyBlock;
    block.cols = is_keys ? kKeyBlock : d;
    block.group = d;
    block.share = is_keys ? LevelBlock::Share::kDown : LevelBlock::Share::kAcross;
    block.sign = is_keys ? LevelBlock::Sign::kSigned : LevelBlock::Sign::kUnsigned;
    block.zero = is_keys ? kZero : 0;
    block.planes = high_ > 4 ? 2 : 1;
    block.next = next;
    // That of the next is not known yet, and is much the same.
    block.n_next = read_records(s, page, block.share, block.zero, scratch);
    if (s.n_outliers == 0) return {.levels = &block};
    read_correction({block.rows, block.cols, 0, s.n_outliers}, page + PageShape::kOutliers,
                    scratch);
    const BlockCorrection& outliers = *scratch.correction;
    for (int64_t i = 0; i < s.n_outliers; ++i) {  // itself less what the codes say
      scratch.added[i] -= level_float(block, outliers.entry_rows[i], outliers.entry_cols[i]);
    }
    return {.levels = &block, .added = scratch.correction};
  }

 private:
  PageShape shape(int64_t d) const { return {d, outlier_count(percent_, kKeyBlock * d)}; }

  // Levels, scales and centres of all positions. The bytes of the page.
  int64_t read_records(const PageShape& s, const std::byte* page, LevelBlock::Share share, int zero,
                       const KvScratch& scratch) const {
    PlaneRow rows[kKeyBlock];
    uint16_t centres[kKeyBlock], scales[kKeyBlock] = {};
    const std::byte* at = page + s.records();
    for (int64_t p = 0; p < kKeyBlock; ++p) {
      const int width = std::min(width_at(page, p), high_);
      rows[p] = {width, at + (width == 0 ? 2 : 4)};
      std::memcpy(centres + p, at, 2);
      if (width > 0) std::memcpy(scales + p, at + 2, 2);
      at += s.record_bytes(width);
    }
    kernels().f16_to_float(centres, kKeyBlock, scratch.centres);
    kernels().f16_to_float(scales, kKeyBlock, scratch.scales);
    unpack_plane_rows({rows, kKeyBlock, s.d_head}, share, zero, scratch.levels);
    return at - page;
  }

  // Width of a step that errors of position p allow; 0: nothing is known.
  double allowed_step(KvSide side, const KvAttention& seen, int64_t p, double rms) const {
    const auto n = static_cast<double>(seen.n_positions);
    if (seen.weights == nullptr || n < 2) return 0;
    const double variance = side == KvSide::kKeys
                                ? std::log1p(n / (n - 1) * error_ * error_) / seen.query_norm
                                : error_ * error_ * rms * rms /
                                      (n * static_cast<double>(seen.weights[p]) * seen.weights[p]);
    return std::sqrt(12 * variance);
  }

  int width_for(double range, double step) const {
    int width = 0;
    while (width < high_ && !(range <= std::ldexp(step, width))) ++width;
    return std::max(width, low_);
  }

  static void put_outliers(KvSide side, const PageShape& s, std::span<const uint16_t> places,
                           std::span<const float> rows, std::byte* page) {
    std::vector<uint16_t> in_block;
    std::vector<float> values;
    for (const uint16_t place : places) {
      const int64_t p = place / s.d_head, c = place % s.d_head;
      in_block.push_back(side == KvSide::kKeys ? static_cast<uint16_t>(c * kKeyBlock + p) : place);
      values.push_back(rows[place]);
    }
    put_correction({kKeyBlock, s.d_head, 0, s.n_outliers}, {{}, {}, values, in_block},
                   page + PageShape::kOutliers);
  }

  // Of every position without its outliers, which become its mean.
  static std::vector<Range> rest_of(const PageShape& s, std::span<const uint16_t> places,
                                    std::vector<float>& rows) {
    std::vector<bool> is_out(rows.size());
    for (const uint16_t place : places) is_out[place] = true;
    std::vector<Range> ranges(kKeyBlock);
    for (size_t p = 0; p < ranges.size(); ++p) {
      Range& range = ranges[p];
      const size_t begin = p * static_cast<size_t>(s.d_head);
      const size_t end = begin + static_cast<size_t>(s.d_head);
      double sum = 0;
      int64_t n = 0;
      for (size_t i = begin; i < end; ++i) {
        if (is_out[i]) continue;
        range.low = n == 0 ? rows[i] : std::min<double>(range.low, rows[i]);
        range.high = n == 0 ? rows[i] : std::max<double>(range.high, rows[i]);
        sum += rows[i];
        ++n;
      }
      range.mean = n == 0 ? 0 : sum / static_cast<double>(n);
      for (size_t i = begin; i < end; ++i) {
        if (is_out[i]) rows[i] = static_cast<float>(range.mean);
      }
    }
    return ranges;
  }

  static Record record_at(const PageShape& s, const std::byte* at, int width) {
    Record record{width, half_at(at, 1), half_at(at, 0), {}};
    record.codes.resize(static_cast<size_t>(s.d_head));
    unpack_plane_row({width, at + 4}, s.d_head, record.codes.data());
    return record;
  }

  std::string spec_;
  double error_;
  int low_, high_;
  double percent_;
  int64_t rows_;
  bool narrows_;
};

constexpr std::string_view kExamples[] = {"qaq(30)", "qaq(10, low=0, high=3, outliers=0)",
                                          "qaq(100, high=8, rows=5, again=false)"};

}  // namespace

extern const KvCodecInfo kv_qaq_codec_info;
const KvCodecInfo kv_qaq_codec_info = {
    .name = "qaq",
    .params = kParams,
    .summary = "so many bits for each position as attention needs (QAQ)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvCodec>> {
      if (params.integer("low") > params.integer("high")) {
        return usage_error("kv: qaq: low is {}, high {}", params.integer("low"),
                           params.integer("high"));
      }
      return std::make_unique<KvQaq>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
