// SPDX-License-Identifier: Apache-2.0
// qtip: 256 weights as one closed path through a trellis whose codewords are computed from a
// sliding window of the bits (QTIP; with the codes mcg and mul1 the format of EXL3).
//
// Definition. A matrix is cut into tiles of 16 rows and 16 columns, padded with weights that cost
// nothing. The weights of a tile, row by row, are a ring of 256 / V steps; step t has the state
//     x_t = the state_bits bits of the tile's bit ring from bit t k V on,
// and stands for the V weights f(x_t) (codes: qtip_codes.cc; V is `vector`). With s the scale of
// the matrix and r_i that of row i,   w_hat_ij = float(s r_i) f(x_t). The ring read backwards is
// the papers' trellis: the window moves on by k V bits a step.
//
// Scale. r_i s = rms(row i) sqrt(1 + feedback D(k)) / (rms(f) std(k)): std(k) is the deviation of a
// Gaussian, in units of rms(f), that the code serves best; it falls with the rate. QTIP's constant
// .9 stands for both factors; here the growth by error feedback is the solver's own figure, with
// D(k) = 2^-2k. r_i are at most 1, so that a half holds rows of very different sizes.
//
// Search: Viterbi twice, see qtip_search.cc. Errors are weighed by the square of the row's scale,
// so that a tile minimises the error of the weights, not of the rows brought to one size.
//
// Layout. codes: U8 [ceil(n_out / 16), ceil(n_in / 16) * 32 bits], a tile's 32 bits bytes together,
// bit i of its ring bit i % 8 of byte i / 8. scale: F32 [1]. rows: F16 [n_out], if `rows`. table:
// F16 [512, 2], if hyb.
// Bits: bits, and 16 / n_in for `rows`; padding, scale and table count in the planes.
// References: QTIP (arXiv 2406.11235); exllamav3, doc/exl3.md.
#include "codecs/qtip.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "base/checked.h"
#include "base/float_types.h"
#include "codecs/codec.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kNumber, "", 1, 4, {}, "bits per weight, in halves"},
    {"code", ParamKind::kChoice, "mul1int8", 0, 0, "mad1|inst3|mcg|mul1|mul1int8|hyb",
     "the codewords"},
    {"vector",
     ParamKind::kInt,
     "0",
     0,
     2,
     {},
     "weights a step; 0: 2 if bits or code need it, or 1"},
    {"state_bits", ParamKind::kInt, "16", 8, 16, {}, "window of a codeword; 12 codes faster"},
    {"rows", ParamKind::kChoice, "true", 0, 0, "true|false", "a scale for each row"},
};

constexpr std::string_view kCodeNames[] = {"mad1", "inst3", "mcg", "mul1", "mul1int8", "hyb"};
constexpr int kBlock = kQtipTile * kQtipTile;
constexpr double kLargestScale = 1e37;
constexpr float kFarthest = 1e6f;
constexpr int64_t kMostTiles = int64_t{1} << 48;

// By 2 bits - 2. std(k), measured with 65536 weights and 16 state bits to about .02, where the
// error is flat; a window of 12 bits would take .03 less. Of the codes with a table, and of hyb.
constexpr double kStd[] = {1.12, 1.04, .985, .965, .945, .92, .905};
constexpr double kHybStd[] = {1.14, 1.04, 1.0, .95, .91, .885, .81};
// The error to expect of a unit Gaussian, by vector - 1: measured, and QTIP's table 2 at 12 state
// bits, 2 to 4 bits and vector 1.
constexpr double kMse[2][7] = {{.2744, 0, .0695, 0, .0180, 0, .0048},
                               {.2670, .1360, .0695, .0353, .0183, .0096, .0052}};
constexpr double kShortMse[2][7] = {{.2860, 0, .0741, 0, .0198, 0, .0055},
                                    {.2780, .1444, .0752, .0393, .0209, .0114, .0065}};
constexpr double kHybMse[] = {.2766, .1410, .0720, .0372, .0197, .0104, .0058};

class QtipCodec final : public Codec {
 public:
  QtipCodec(const spec::Params& params, QtipCode code, int step_weights)
      : spec_(print(params.canonical())),
        bits_(params.number("bits")),
        code_(code),
        has_rows_(params.flag("rows")) {
    trellis_.state_bits = static_cast<int>(params.integer("state_bits"));
    trellis_.step_weights = step_weights;
    trellis_.step_bits = static_cast<int>(bits_ * trellis_.step_weights);
    trellis_.n_steps = kBlock / trellis_.step_weights;
  }

  std::string spec() const override { return spec_; }
  Claim claim() const override {
    const auto half_bits = static_cast<size_t>(2 * bits_) - 2;
    const auto vector = static_cast<size_t>(trellis_.step_weights) - 1;
    const bool is_hyb = code_ == QtipCode::kHyb;
    if (trellis_.state_bits == 16) {
      return {bits_, is_hyb ? kHybMse[half_bits] : kMse[vector][half_bits], "measured, L = 16"};
    }
    const bool is_known = trellis_.state_bits >= 12 && !is_hyb;
    return {bits_, is_known ? kShortMse[vector][half_bits] : 0,
            vector == 0 ? "QTIP (arXiv 2406.11235) table 2, L = 12" : "measured, L = 12"};
  }
  int64_t block_cols() const override { return kQtipTile; }
  int64_t block_rows() const override { return kQtipTile; }
  int64_t group_cols(int64_t n_in) const override { return n_in; }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    const auto n_tiles = checked_mul(tiles(n_out), tiles(n_in));
    if (!n_tiles || *n_tiles > kMostTiles) {
      return error("{}: a matrix of {} x {} has too many tiles", spec_, n_out, n_in);
    }
    std::vector<PlaneSpec> planes = {
        {"codes", DType::kU8, {tiles(n_out), tiles(n_in) * tile_bytes()}},
        {"scale", DType::kF32, {1}},
    };
    if (has_rows_) planes.push_back({"rows", DType::kF16, {n_out}});
    if (code_ == QtipCode::kHyb) planes.push_back({"table", DType::kF16, {kQtipTableSize, 2}});
    return planes;
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    const MatrixView<const float> w = source.w;
    std::vector<double> rms(static_cast<size_t>(w.rows));
    double sum = 0, largest = 0;
    for (int64_t i = 0; i < w.rows; ++i) {
      double square = 0;
      for (int64_t j = 0; j < w.cols; ++j) square += static_cast<double>(w(i, j)) * w(i, j);
      sum += square;
      rms[static_cast<size_t>(i)] = std::sqrt(square / static_cast<double>(w.cols));
      largest = std::max(largest, rms[static_cast<size_t>(i)]);
    }
    const double all = std::sqrt(sum / static_cast<double>(w.rows * w.cols));
    const double unit = (has_rows_ ? largest : all) *
                        std::sqrt(1 + source.feedback * std::exp2(-2 * bits_)) / source_rms();
    const float scale = static_cast<float>(std::min(unit, kLargestScale));
    std::memcpy(codes.planes[1], &scale, 4);
    for (int64_t i = 0; i < w.rows && has_rows_; ++i) {
      const double ratio = largest > 0 ? rms[static_cast<size_t>(i)] / largest : 0;
      put_half(codes.planes[2], i, static_cast<float>(ratio));
    }
    if (code_ == QtipCode::kHyb) {
      std::memcpy(codes.planes.back(), qtip_hyb_table().data(), 4 * kQtipTableSize);
    }
  }

  void fit(MatrixView<const float>, std::span<const float>, int64_t, int64_t,
           const MutableCodes&) const override {}

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    for (int64_t i = 0; i < w.rows; i += kQtipTile) {
      const int64_t rows = std::min<int64_t>(kQtipTile, w.rows - i);
      for (int64_t j = 0; j < w.cols; j += kQtipTile) {
        const int64_t cols = std::min<int64_t>(kQtipTile, w.cols - j);
        encode_tile(w.row_range(i, rows).col_range(j, cols), row + i, col + j, codes,
                    w_hat.row_range(i, rows).col_range(j, cols));
      }
    }
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const auto decode_row =
        kernels().isa == Isa::kAvx512 ? qtip_decode_row_avx512 : qtip_decode_row_ref;
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      decode_row(row_of(codes, i, 0, codes.n_in), dst);
    }
  }

 private:
  static int64_t tiles(int64_t n) { return ceil_div<int64_t>(n, kQtipTile); }
  int64_t tile_bytes() const {
    return kQtipTile * qtip_row_bytes(trellis_.step_weights, trellis_.step_bits);
  }

  // Row i from column `col` (a multiple of 16) on.
  QtipRow row_of(const CodesView& codes, int64_t i, int64_t col, int64_t n) const {
    const int64_t tile = i / kQtipTile * tiles(codes.n_in) + col / kQtipTile;
    return {code_,
            trellis_.state_bits,
            trellis_.step_bits,
            trellis_.step_weights,
            reinterpret_cast<const uint8_t*>(codes.planes[0]) + tile * tile_bytes(),
            reinterpret_cast<const uint8_t*>(codes.planes.back()),
            static_cast<int>(i % kQtipTile),
            n,
            row_scale(codes, i)};
  }

  float row_scale(const CodesView& codes, int64_t i) const {
    float scale;
    std::memcpy(&scale, codes.planes[1], 4);
    if (!has_rows_) return scale;
    return scale * half_at(codes.planes[2], i);
  }

  void encode_tile(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
                   MatrixView<float> w_hat) const {
    float largest = 0, scales[kQtipTile];
    for (int64_t i = 0; i < w.rows; ++i) {
      scales[i] = row_scale(codes, row + i);
      largest = std::max(largest, scales[i]);
    }
    float target[kBlock] = {}, root_weight[kBlock] = {};
    for (int64_t i = 0; i < w.rows && largest > 0; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) {
        const float z = w(i, j) / largest;
        if (!(scales[i] > 0 && std::isfinite(z))) continue;
        target[i * kQtipTile + j] = std::clamp(z, -kFarthest, kFarthest);
        root_weight[i * kQtipTile + j] = scales[i] / largest;
      }
    }
    uint8_t symbols[kBlock];
    qtip_search(trellis_, {codewords().data(), target, root_weight}, qtip_step(trellis_), symbols);
    const int64_t tile = row / kQtipTile * tiles(codes.n_in) + col / kQtipTile;
    pack(symbols, reinterpret_cast<uint8_t*>(codes.planes[0]) + tile * tile_bytes());
    for (int64_t i = 0; i < w.rows; ++i) {
      qtip_decode_row_ref(row_of(codes, row + i, col, w.cols), w_hat.row(i));
    }
  }

  void pack(const uint8_t* symbols, uint8_t* tile) const {
    std::memset(tile, 0, static_cast<size_t>(tile_bytes()));
    for (int t = 0; t < trellis_.n_steps; ++t) {
      for (int b = 0; b < trellis_.step_bits; ++b) {
        const int bit = t * trellis_.step_bits + b;
        tile[bit / 8] = static_cast<uint8_t>(tile[bit / 8] | (symbols[t] >> b & 1) << bit % 8);
      }
    }
  }

  const AlignedVector<float>& codewords() const {
    std::call_once(once_, [this] {
      const auto* table = code_ == QtipCode::kHyb
                              ? reinterpret_cast<const uint8_t*>(qtip_hyb_table().data())
                              : nullptr;
      codewords_ = qtip_codewords(code_, trellis_, table);
    });
    return codewords_;
  }

  // The rms of a Gaussian that the code serves best.
  double source_rms() const {
    double square = 0;
    for (const float f : codewords()) square += static_cast<double>(f) * f;
    const auto half_bits = static_cast<size_t>(2 * bits_) - 2;
    return std::sqrt(square / static_cast<double>(codewords().size())) *
           (code_ == QtipCode::kHyb ? kHybStd[half_bits] : kStd[half_bits]);
  }

  std::string spec_;
  double bits_;
  QtipCode code_;
  bool has_rows_;
  QtipTrellis trellis_;
  mutable std::once_flag once_;
  mutable AlignedVector<float> codewords_;
};

Result<std::unique_ptr<Codec>> make_qtip(const spec::Params& params) {
  const auto code = static_cast<QtipCode>(
      std::find(std::begin(kCodeNames), std::end(kCodeNames), params.word("code")) -
      std::begin(kCodeNames));
  const double bits = params.number("bits");
  if (2 * bits != std::floor(2 * bits)) {
    return usage_error("qtip: bits is {}, expected a whole or half number", bits);
  }
  const bool is_whole = bits == std::floor(bits), is_hyb = code == QtipCode::kHyb;
  const int least = is_hyb || !is_whole ? 2 : 1;
  auto vector = static_cast<int>(params.integer("vector"));
  if (vector == 0) vector = least;
  if (vector < least) {
    return usage_error("qtip: {} takes two weights a step, but vector is 1",
                       is_hyb ? "code=hyb" : "a half number of bits");
  }
  return std::make_unique<QtipCodec>(params, code, vector);
}

constexpr std::string_view kExamples[] = {
    "qtip(2, state_bits=12)",
    "qtip(1, code=mcg, state_bits=12)",
    "qtip(3, code=mul1, state_bits=10)",
    "qtip(4, code=mad1, state_bits=10)",
    "qtip(2, code=inst3, state_bits=9)",
    "qtip(1.5, code=hyb, state_bits=12)",
    "qtip(2, vector=2, state_bits=12)",
    "qtip(2.5, code=mad1, state_bits=12)",
    "qtip(3.5, code=mcg, state_bits=9)",
};

}  // namespace

uint32_t qtip_window(const uint8_t* tile, int tile_bytes, int state_bits, int bit) {
  uint32_t word = 0;
  for (int k = 0; k < 3; ++k) {
    word |= static_cast<uint32_t>(tile[(bit / 8 + k) % tile_bytes]) << 8 * k;
  }
  return word >> bit % 8 & ((1u << state_bits) - 1);
}

void qtip_decode_row_ref(const QtipRow& row, float* dst) {
  const int row_bytes = qtip_row_bytes(row.step_weights, row.step_bits);
  const int tile_bytes = kQtipTile * row_bytes;
  for (int64_t j = 0; j < row.n; ++j) {
    const int p = static_cast<int>(j % kQtipTile), c = p / row.step_weights;
    const uint32_t state = qtip_window(row.tiles + j / kQtipTile * tile_bytes, tile_bytes,
                                       row.state_bits, 8 * row.row * row_bytes + c * row.step_bits);
    float f;
    if (row.code == QtipCode::kHyb) {
      const uint32_t pair = qtip_pair(row.table, state);
      f = f16_to_float(static_cast<uint16_t>(pair >> 16 * (p % 2)));
    } else {
      f = qtip_codeword(row.code, state, p % row.step_weights);
    }
    dst[j] = row.scale * f;
  }
}

extern const CodecInfo qtip_codec_info;
const CodecInfo qtip_codec_info = {
    .id = 30,
    .name = "qtip",
    .params = kParams,
    .summary = "tail-biting trellis over tiles, computed codewords",
    .make = make_qtip,
    .examples = kExamples,
};

}  // namespace quern
