// SPDX-License-Identifier: Apache-2.0
#include "codecs/interleaved.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/checked.h"
#include "base/float_types.h"
#include "base/parallel.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr int64_t kColumns = 64;                 // rows are padded to a multiple
constexpr int64_t kWholeRow = int64_t{1} << 40;  // more columns than any row has, padding included

struct Widths {
  int low, high;
  explicit Widths(int bits)
      : low(bits >= 7   ? 8
            : bits >= 4 ? 4
            : bits >= 2 ? 2
                        : 1),
        high(bits >= 7 ? 0 : bits - low) {}
};

class InterleavedDecoder final : public Decoder {
 public:
  InterleavedDecoder(const InterleavedSource& source, DType scale_type)
      : spec_(source.spec),
        widths_(source.bits),
        bits_(source.bits),
        group_(source.group),
        panel_group_(panel_group_of(source.group, source.rows.n_in)),
        has_zeros_(source.zeros != nullptr),
        scale_type_(scale_type),
        unit_(source.unit),
        values_(source.values) {
    const unsigned mask = (1u << bits_) - 1;
    for (unsigned i = 0; i < 256; ++i) {
      levels_[i] = source.levels[i & mask];
      is_level_ = is_level_ && levels_[i] == i;
    }
  }

  std::string spec() const override { return spec_; }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    const int64_t panels = ceil_div(n_out, kPanelRows), groups = ceil_div(n_in, group_);
    std::vector<PlaneSpec> planes = {
        {"low", DType::kU8, {panels, panel_bytes(n_in, widths_.low)}},
        {"scales", scale_type_, {panels, groups, kPanelRows}},
    };
    if (widths_.high > 0) {
      planes.push_back({"high", DType::kU8, {panels, panel_bytes(n_in, widths_.high)}});
    }
    if (has_zeros_) planes.push_back({"zeros", DType::kU8, {panels, groups, kPanelRows}});
    return planes;
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const int64_t groups = ceil_div(codes.n_in, group_);
    for (int64_t i = row; i < row + n_rows; ++i) {
      const int64_t panel = i / kPanelRows, r = i % kPanelRows;
      const InterleavedPanel p = panel_at(codes, panel, 0);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t place = (panel * groups + g) * kPanelRows + r;
        const float scale = scale_at(codes, place);
        const float zero = has_zeros_ ? static_cast<float>(*plane(codes, zeros_plane(), place)) : 0;
        for (int64_t j = g * group_; j < std::min(codes.n_in, (g + 1) * group_); ++j) {
          *dst++ = scale * (values_[code_at(p, r, j)] - zero);
        }
      }
    }
  }

  PanelTile panel_tile(int64_t n_in) const override { return row_tile(panel_group_, group_, n_in); }

  void decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, const MutablePanels& out) const override {
    const Isa isa = kernels().isa;
    const auto write = isa == Isa::kAvx512 ? interleaved_levels_avx512
                       : isa == Isa::kAvx2 ? interleaved_levels_avx2
                                           : interleaved_levels_ref;
    const int64_t groups = ceil_div(codes.n_in, group_), n = ceil_div(n_cols, group_);
    // Not to the end of a panel's group, which may lie past the columns that rows are padded to.
    const int64_t n_quads = round_up<int64_t>(n_cols, 16) / 4;
    for (int64_t p = 0; p < ceil_div(n_rows, kPanelRows); ++p) {
      const int64_t panel = row / kPanelRows + p;
      const int64_t place = (panel * groups + col / group_) * kPanelRows;
      prefetch_scales(codes, place + groups * kPanelRows, n * kPanelRows);
      write(panel_at(codes, panel, col), n_quads, out.levels + p * out.levels_stride);
      float* scales = out.scales + p * out.scales_stride;
      load_scales(codes, place, n * kPanelRows, scales);
      // From the last on: a codec's group is whole groups of the panel.
      for (int64_t g = ceil_div(n_cols, panel_group_) - 1; g > 0 && panel_group_ < group_; --g) {
        std::copy_n(scales + g * panel_group_ / group_ * kPanelRows, kPanelRows,
                    scales + g * kPanelRows);
      }
    }
  }

  bool dot_panels(const CodesView& codes, int64_t row, int64_t n_rows, const Int8Rows& x,
                  float* y) const override {
    const Isa isa = kernels().isa;
    if (isa == Isa::kRef || (x.n_groups > 1 && x.group % 32 != 0)) return false;
    const auto dot = isa == Isa::kAvx512 ? interleaved_dot_avx512 : interleaved_dot_avx2;
    const int64_t groups = ceil_div(codes.n_in, group_);
    const bool has_halves = scale_type_ == DType::kF16;
    for (int64_t r = 0; r < n_rows; r += kPanelRows) {
      const int64_t panel = (row + r) / kPanelRows, place = panel * groups * kPanelRows;
      prefetch_scales(codes, place + groups * kPanelRows, groups * kPanelRows);
      float sums[kPanelRows];
      dot({panel_at(codes, panel, 0), codes.planes[1] + place * (has_halves ? 2 : 4), has_halves,
           unit_, group_, x, round_up<int64_t>(codes.n_in, 16) / 4},
          sums);
      std::copy_n(sums, std::min(kPanelRows, n_rows - r), y + r);
    }
    return true;
  }

  void write_panel(const InterleavedSource& source, int64_t panel, const MutableCodes& codes) const;

 private:
  static int64_t panel_bytes(int64_t n_in, int width) {
    return round_up(n_in, kColumns) * kPanelRows * width / 8;
  }
  static const uint8_t* plane(const CodesView& codes, size_t i, int64_t at) {
    return reinterpret_cast<const uint8_t*>(codes.planes[i]) + at;
  }
  size_t zeros_plane() const { return widths_.high > 0 ? 3 : 2; }

  InterleavedPanel panel_at(const CodesView& codes, int64_t panel, int64_t col) const {
    const auto at = [&](int width) {
      return panel * panel_bytes(codes.n_in, width) + col * kPanelRows * width / 8;
    };
    const int64_t place = (panel * ceil_div(codes.n_in, group_) + col / group_) * kPanelRows;
    return {plane(codes, 0, at(widths_.low)),
            widths_.high > 0 ? plane(codes, 2, at(widths_.high)) : nullptr,
            has_zeros_ ? plane(codes, zeros_plane(), place) : nullptr,
            levels_.data(),
            widths_.low,
            widths_.high,
            group_ < codes.n_in ? group_ : kWholeRow,
            is_level_};
  }

  static unsigned field_at(const uint8_t* plane, int width, int64_t r, int64_t j) {
    const int64_t quad = j / 4, per_line = 8 / width;
    const unsigned byte = plane[quad / per_line * 64 + 4 * r + j % 4];
    return byte >> (quad % per_line * width) & ((1u << width) - 1);
  }
  unsigned code_at(const InterleavedPanel& p, int64_t r, int64_t j) const {
    unsigned code = field_at(p.low, p.low_bits, r, j);
    if (p.high != nullptr) code |= field_at(p.high, p.high_bits, r, j) << p.low_bits;
    return code;
  }

  float scale_at(const CodesView& codes, int64_t place) const {
    if (scale_type_ == DType::kF32) return reinterpret_cast<const float*>(codes.planes[1])[place];
    return half_at(codes.planes[1], place);
  }
  // Those of the next panel: they are too few for the processor to see where they go.
  void prefetch_scales(const CodesView& codes, int64_t place, int64_t n) const {
    const int64_t size = dtype_bits(scale_type_) / 8;
    for (int64_t i = 0; i < n * size; i += 64) {
      __builtin_prefetch(codes.planes[1] + place * size + i);
    }
  }
  void load_scales(const CodesView& codes, int64_t place, int64_t n, float* scales) const {
    if (scale_type_ == DType::kF32) {
      std::memcpy(scales, codes.planes[1] + 4 * place, static_cast<size_t>(4 * n));
    } else {
      kernels().f16_to_float(codes.planes[1] + 2 * place, n, scales);
    }
    if (unit_ != 1) kernels().scale(unit_, n, scales);
  }

  std::string spec_;
  Widths widths_;
  int bits_;
  int64_t group_, panel_group_;
  bool has_zeros_;
  DType scale_type_;
  float unit_;
  std::array<float, 256> values_;
  bool is_level_ = true;
  alignas(64) std::array<uint8_t, 256> levels_{};
};

// Puts fields [shift, shift + width) of the codes of a panel, a byte each, into their plane.
void pack(const uint8_t* code, int64_t n, int shift, int width, uint8_t* plane) {
  const int per_line = 8 / width;
  const unsigned mask = (1u << width) - 1;
  for (int64_t i = 0; i < n; i += int64_t{64} * per_line, plane += 64) {
    uint8_t line[64] = {};
    for (int q = 0; q < per_line; ++q, code += 64) {
      for (int k = 0; k < 64; ++k) {
        line[k] = static_cast<uint8_t>(line[k] | (code[k] >> shift & mask) << (q * width));
      }
    }
    std::memcpy(plane, line, 64);
  }
}

void InterleavedDecoder::write_panel(const InterleavedSource& source, int64_t panel,
                                     const MutableCodes& codes) const {
  const int64_t first = panel * kPanelRows, height = std::min(kPanelRows, codes.n_out - first);
  const int64_t n = round_up(codes.n_in, kColumns) * kPanelRows;
  thread_local std::vector<uint8_t> bytes;
  bytes.assign(static_cast<size_t>(n), 0);
  code_panel(source.rows, first, height, bytes.data());
  auto* low = reinterpret_cast<uint8_t*>(codes.planes[0]);
  pack(bytes.data(), n, 0, widths_.low, low + panel * panel_bytes(codes.n_in, widths_.low));
  if (widths_.high > 0) {
    auto* high = reinterpret_cast<uint8_t*>(codes.planes[2]);
    pack(bytes.data(), n, widths_.low, widths_.high,
         high + panel * panel_bytes(codes.n_in, widths_.high));
  }
  const int64_t groups = ceil_div(codes.n_in, group_);
  std::vector<float> scales(static_cast<size_t>(groups));
  for (int64_t r = 0; r < height; ++r) {
    source.read_scales(first + r, scales.data());
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t place = (panel * groups + g) * kPanelRows + r;
      const float scale = scales[static_cast<size_t>(g)];
      if (scale_type_ == DType::kF32) {
        reinterpret_cast<float*>(codes.planes[1])[place] = scale;
      } else {
        put_half(codes.planes[1], place, scale);
      }
      if (has_zeros_) {
        codes.planes[zeros_plane()][place] =
            static_cast<std::byte>(source.zeros[(first + r) * groups + g]);
      }
    }
  }
}

bool are_halves(const InterleavedSource& source, int64_t groups) {
  std::vector<float> scales(static_cast<size_t>(groups));
  for (int64_t row = 0; row < source.n_out; ++row) {
    source.read_scales(row, scales.data());
    for (const float scale : scales) {
      const float half = f16_to_float(float_to_f16(scale));
      if (std::bit_cast<uint32_t>(half) != std::bit_cast<uint32_t>(scale)) return false;
    }
  }
  return true;
}

}  // namespace

void InterleavedSource::set_integers(int zero) {
  for (int code = 0; code < 256; ++code) {
    values[static_cast<size_t>(code)] = static_cast<float>(code - zero);
    levels[static_cast<size_t>(code)] = static_cast<uint8_t>(kPanelZero + code - zero);
  }
}

std::shared_ptr<const RuntimeForm> interleave(const InterleavedSource& source) {
  InterleavedSource whole = source;
  const int64_t n_in = source.rows.n_in;
  whole.group = std::min(source.group, n_in);
  if (panel_group_of(whole.group, n_in) == 0) return nullptr;
  const bool halves = are_halves(whole, ceil_div(n_in, whole.group));
  auto decoder = std::make_unique<InterleavedDecoder>(whole, halves ? DType::kF16 : DType::kF32);
  auto form = std::make_shared<RuntimeForm>();
  form->codes = *CodedMatrix::create(*decoder, source.n_out, n_in);
  const MutableCodes codes = form->codes.mutable_view();
  parallel_for(ceil_div(source.n_out, kPanelRows), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) decoder->write_panel(whole, panel, codes);
  });
  form->decoder = std::move(decoder);
  return form;
}

void interleaved_levels_ref(const InterleavedPanel& panel, int64_t n_quads, uint8_t* levels) {
  const int low_line = 8 / panel.low_bits,
            high_line = panel.high_bits > 0 ? 8 / panel.high_bits : 1;
  const unsigned low_mask = (1u << panel.low_bits) - 1, high_mask = (1u << panel.high_bits) - 1;
  for (int64_t q = 0; q < n_quads; ++q, levels += 64) {
    const uint8_t* low = panel.low + q / low_line * 64;
    const uint8_t* high = panel.high == nullptr ? nullptr : panel.high + q / high_line * 64;
    const uint8_t* zeros =
        panel.zeros == nullptr ? nullptr : panel.zeros + q * 4 / panel.group * kPanelRows;
    for (int64_t k = 0; k < 64; ++k) {
      unsigned code = low[k] >> (q % low_line * panel.low_bits) & low_mask;
      if (high != nullptr) {
        code |= (high[k] >> (q % high_line * panel.high_bits) & high_mask) << panel.low_bits;
      }
      const unsigned zero = zeros == nullptr ? 0 : zeros[k / 4];
      levels[k] = static_cast<uint8_t>(panel.levels[code] - zero);
    }
  }
}

}  // namespace quern
