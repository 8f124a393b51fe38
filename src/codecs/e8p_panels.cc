// SPDX-License-Identifier: Apache-2.0
#include "codecs/e8p_panels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/checked.h"
#include "base/parallel.h"
#include "codecs/code_panels.h"
#include "codecs/row_scale.h"

namespace quern {
namespace {

constexpr int64_t kBlock = 8, kLineBlocks = 4, kLineCols = kBlock * kLineBlocks;
constexpr unsigned kMinusHalf = 3;  // the fourth magnitude of E8P

int64_t place_of(int64_t r, int64_t b) { return r / 4 * 16 + b / 2 * 8 + r % 4 * 2 + b % 2; }

// Two bits of each of eight columns, at their places in a byte of each table.
template <class Field>
void fill(uint8_t (&tables)[2][256], unsigned byte, int first_half, const Field& field) {
  for (int p = 0; p < 2; ++p) {
    unsigned packed = 0;
    for (int i = 0; i < 4; ++i) {
      const int half = i / 2 ^ first_half;
      packed |= field(4 * half + 2 * p + i % 2) << 2 * i;
    }
    tables[p][byte] = static_cast<uint8_t>(packed);
  }
}

// level_of(magnitude, sign and shift)
template <class LevelOf>
void fill_levels(E8pPanelTables& t, const LevelOf& level_of) {
  for (unsigned i = 0; i < 64; ++i) {
    t.levels[0][i] = static_cast<uint8_t>(level_of(i & 3, i >> 4));
    t.levels[1][i] = static_cast<uint8_t>(level_of(i >> 4, i & 3));
  }
}

// The first column of a row with 1/2; every row has some.
int first_half_of(unsigned packed) {
  int column = 0;
  while ((packed >> 2 * column & 3) != 0) ++column;
  return column;
}

// What is to be turned in the signs of each row.
std::array<uint8_t, 256> turned_signs(const E8pTables& t) {
  std::array<uint8_t, 256> turned{};
  for (size_t row = 0; row < 256; ++row) {
    if (t.is_odd[row] != 0) {
      turned[row] = static_cast<uint8_t>(0x80u ^ 1u << first_half_of(t.packed[row]));
    }
  }
  return turned;
}

// level_of(quarters)
template <class LevelOf>
void fill_e8p(const E8pTables& t, const LevelOf& level_of, E8pPanelTables& out) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    const unsigned packed = t.packed[byte];
    const int turned = t.is_odd[byte] != 0 ? first_half_of(packed) : -1;
    fill(out.magnitudes, byte, 0,
         [&](int i) { return i == turned ? kMinusHalf : packed >> 2 * i & 3u; });
    const unsigned is_minus = static_cast<unsigned>(std::popcount(byte)) & 1u;
    const unsigned negated = byte ^ is_minus;
    fill(out.signs, byte, 1, [&](int i) { return (negated >> i & 1u) | is_minus << 1; });
  }
  fill_levels(out, [&](unsigned magnitude, unsigned sign) {
    const int value = magnitude == kMinusHalf ? -2 : 2 + 4 * static_cast<int>(magnitude);
    return level_of(((sign & 1) != 0 ? -value : value) + ((sign & 2) != 0 ? -1 : 1));
  });
}

// Both bytes of a block are the same one.
template <class LevelOf>
void fill_e8(const E8pTables& t, const LevelOf& level_of, E8pPanelTables& out) {
  constexpr unsigned kMagnitudes[9] = {0, 0, 1, 0, 2, 0, 0, 0, 3};
  constexpr int kQuarters[4] = {0, 2, 4, 8};
  for (unsigned byte = 0; byte < 256; ++byte) {
    const int8_t* point = t.e8[byte];
    fill(out.magnitudes, byte, 0, [&](int i) { return kMagnitudes[std::abs(point[i])]; });
    fill(out.signs, byte, 1, [&](int i) { return point[i] < 0 ? 1u : 0u; });
  }
  fill_levels(out, [&](unsigned magnitude, unsigned sign) {
    return level_of((sign & 1) != 0 ? -kQuarters[magnitude] : kQuarters[magnitude]);
  });
}

// Levels of a block.
void read_block(const E8pPanelTables& t, uint8_t first, uint8_t second, uint8_t* levels) {
  for (int i = 0; i < kBlock; ++i) {
    const int h = i / 4, p = i % 4 / 2;
    const uint8_t magnitudes = t.magnitudes[p][first], signs = t.signs[p][second];
    const unsigned x =
        h == 0 ? (magnitudes & 0x0f) | (signs & 0xf0) : (signs & 0x0f) | (magnitudes & 0xf0);
    levels[i] = t.levels[h][x >> i % 2 * 2 & 63];
  }
}

class E8pPanelDecoder final : public Decoder {
 public:
  E8pPanelDecoder(std::string spec, E8pResidual kind, float ratio)
      : spec_(std::move(spec)),
        kind_(kind),
        ratio_(ratio),
        turned_(turned_signs(e8p_tables())),
        unit_(kind == E8pResidual::kNone ? 1 : 8) {
    const auto point = [&](int quarters) { return kPanelZero + unit_ * quarters; };
    const auto residual = [&](int quarters) {
      return static_cast<int>(std::nearbyint(static_cast<float>(unit_ * quarters) / ratio_));
    };
    fill_e8p(e8p_tables(), point, point_);
    if (kind == E8pResidual::kE8) fill_e8(e8p_tables(), residual, residual_);
    if (kind == E8pResidual::kE8p) fill_e8p(e8p_tables(), residual, residual_);
  }

  std::string spec() const override { return spec_; }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    const int64_t panels = ceil_div(n_out, kPanelRows);
    return std::vector<PlaneSpec>{
        {"codes", DType::kU8, {panels, ceil_div(n_in, kLineCols), e8p_n_lines(kind_), kE8pLine}},
        {"scales", DType::kF16, {panels, kPanelRows}}};
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const E8pKernels& kernel = e8p_kernels(kernels().isa);
    const int64_t blocks = ceil_div(codes.n_in, kBlock);
    std::vector<uint8_t> points(static_cast<size_t>(2 * blocks)), residual(points);
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      for (int64_t b = 0; b < blocks; ++b) {
        const uint8_t* at = line(codes, i / kPanelRows, b / kLineBlocks) +
                            place_of(i % kPanelRows, b % kLineBlocks);
        get_code(at, points.data() + 2 * b);
        if (kind_ == E8pResidual::kE8) residual[static_cast<size_t>(b)] = at[2 * kE8pLine];
        if (kind_ == E8pResidual::kE8p) get_code(at + 2 * kE8pLine, residual.data() + 2 * b);
      }
      kernel.decode_row(e8p_tables(),
                        {points.data(), residual.data(), codes.n_in, row_scale(codes.planes[1], i),
                         1.0f / ratio_, kind_},
                        dst);
    }
  }

  PanelTile panel_tile(int64_t n_in) const override {
    return row_tile(panel_group_of(n_in, n_in), n_in, n_in);
  }

  void decode_panels(const CodesView& codes, int64_t row, int64_t n_rows, int64_t col,
                     int64_t n_cols, const MutablePanels& out) const override {
    const Isa isa = kernels().isa;
    const auto write = isa == Isa::kAvx512 ? e8p_lines_avx512
                       : isa == Isa::kAvx2 ? e8p_lines_avx2
                                           : e8p_lines_ref;
    const int64_t group = panel_group_of(codes.n_in, codes.n_in);
    for (int64_t p = 0; p < ceil_div(n_rows, kPanelRows); ++p) {
      const int64_t panel = row / kPanelRows + p;
      write(lines(codes, panel, col, n_cols), out.levels + p * out.levels_stride);
      float scales[kPanelRows];
      load_scales(codes, panel, scales);
      float* to = out.scales + p * out.scales_stride;
      for (int64_t j = 0; j < n_cols; j += group) to = std::copy_n(scales, kPanelRows, to);
    }
  }

  bool dot_panels(const CodesView& codes, int64_t row, int64_t n_rows, const Int8Rows& x,
                  float* y) const override {
    if (kernels().isa != Isa::kAvx512 || x.group % kLineCols != 0) return false;
    for (int64_t r = 0; r < n_rows; r += kPanelRows) {
      const int64_t panel = (row + r) / kPanelRows;
      float scales[kPanelRows], sums[kPanelRows];
      load_scales(codes, panel, scales);
      e8p_dot_avx512(lines(codes, panel, 0, codes.n_in), x, scales, sums);
      std::copy_n(sums, std::min(kPanelRows, n_rows - r), y + r);
    }
    return true;
  }

  void write_row(const CodesView& from, int64_t row, const MutableCodes& to) const {
    const int64_t blocks = ceil_div(from.n_in, kBlock), panel = row / kPanelRows;
    const auto* points = reinterpret_cast<const uint8_t*>(from.planes[0]) + 2 * row * blocks;
    const auto* residual = kind_ == E8pResidual::kNone
                               ? nullptr
                               : reinterpret_cast<const uint8_t*>(from.planes[2]) +
                                     (e8p_n_lines(kind_) - 2) * row * blocks;
    auto* lines = reinterpret_cast<uint8_t*>(to.planes[0]) + (line(to, panel, 0) - line(to, 0, 0));
    for (int64_t b = 0; b < blocks; ++b) {
      uint8_t* at = lines + b / kLineBlocks * e8p_n_lines(kind_) * kE8pLine +
                    place_of(row % kPanelRows, b % kLineBlocks);
      put_code(points + 2 * b, at);
      if (kind_ == E8pResidual::kE8) at[2 * kE8pLine] = residual[b];
      if (kind_ == E8pResidual::kE8p) put_code(residual + 2 * b, at + 2 * kE8pLine);
    }
    std::memcpy(to.planes[1] + 2 * row, from.planes[1] + 2 * row, 2);
  }

 private:
  const uint8_t* line(const CodesView& codes, int64_t panel, int64_t i) const {
    const int64_t place = panel * ceil_div(codes.n_in, kLineCols) + i;
    return reinterpret_cast<const uint8_t*>(codes.planes[0]) +
           place * e8p_n_lines(kind_) * kE8pLine;
  }
  E8pLines lines(const CodesView& codes, int64_t panel, int64_t col, int64_t n_cols) const {
    const E8pPanelTables* residual = kind_ == E8pResidual::kNone ? nullptr : &residual_;
    return {&point_, residual, kind_, line(codes, panel, col / kLineCols),
            ceil_div(n_cols, kLineCols)};
  }
  void load_scales(const CodesView& codes, int64_t panel, float* scales) const {
    kernels().f16_to_float(codes.planes[1] + 2 * panel * kPanelRows, kPanelRows, scales);
    kernels().scale(0.25f / static_cast<float>(unit_), kPanelRows, scales);
  }
  // A code has the signs in its first byte and the row in its second.
  void put_code(const uint8_t* code, uint8_t* at) const {
    at[0] = code[1];
    at[kE8pLine] = static_cast<uint8_t>(code[0] ^ turned_[code[1]]);
  }
  void get_code(const uint8_t* at, uint8_t* code) const {
    code[0] = static_cast<uint8_t>(at[kE8pLine] ^ turned_[at[0]]);
    code[1] = at[0];
  }

  std::string spec_;
  E8pResidual kind_;
  float ratio_;
  std::array<uint8_t, 256> turned_;
  int unit_;  // levels of a quarter
  E8pPanelTables point_, residual_;
};

}  // namespace

std::shared_ptr<const RuntimeForm> e8p_panel_form(std::string spec, E8pResidual kind, float ratio,
                                                  const CodesView& codes) {
  auto decoder = std::make_unique<E8pPanelDecoder>(std::move(spec), kind, ratio);
  auto form = std::make_shared<RuntimeForm>();
  form->codes = *CodedMatrix::create(*decoder, codes.n_out, codes.n_in);
  const MutableCodes to = form->codes.mutable_view();
  parallel_for(codes.n_out, kPanelRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) decoder->write_row(codes, row, to);
  });
  form->decoder = std::move(decoder);
  return form;
}

void e8p_lines_ref(const E8pLines& lines, uint8_t* panel) {
  const uint8_t* codes = lines.codes;
  for (int64_t i = 0; i < lines.n; ++i, codes += e8p_n_lines(lines.kind) * kE8pLine) {
    for (int64_t r = 0; r < kPanelRows; ++r) {
      for (int64_t b = 0; b < kLineBlocks; ++b) {
        const uint8_t* at = codes + place_of(r, b);
        uint8_t block[kBlock];
        read_block(*lines.point, at[0], at[kE8pLine], block);
        if (lines.residual != nullptr) {
          uint8_t rest[kBlock];
          read_block(*lines.residual, at[2 * kE8pLine], at[e8p_second_line(lines.kind) * kE8pLine],
                     rest);
          for (int c = 0; c < kBlock; ++c) block[c] = static_cast<uint8_t>(block[c] + rest[c]);
        }
        uint8_t* to = panel + (2 * (i * kLineBlocks + b) * kPanelRows + r) * 4;
        std::memcpy(to, block, 4);
        std::memcpy(to + 4 * kPanelRows, block + 4, 4);
      }
    }
  }
}

}  // namespace quern
