// SPDX-License-Identifier: Apache-2.0
// e8p: eight weights as a point of a padded E8 lattice, two bits a weight; with the residual coded
// again, three or four.
//
// Definition. E8P is 65536 points of E8 + 1/4: from 256 rows of magnitudes 1/2, 3/2, 5/2, each with
// all 128 sign patterns of the parity that makes the sum even, plus or minus 1/4 on all
// coordinates. Times 4 all coordinates are odd integers in [-11, 11]. Then
//     w_hat = scale * p                           bits=2
//     w_hat = scale * (p + q / 2.04)              bits=3, q of 256 points of E8: |q|^2 <= 2 and 15
//     w_hat = scale * (p + q / 3.45)              bits=4, q of E8P
// p is the nearest point to w / scale, q then the nearest to what remains, times 2.04 or 3.45.
//
// Scales. Each row has its own, a half: rows of a matrix that is rotated on the input side only
// differ in norm, and a codebook without zero needs scale 0 for rows of zeros. With v the variance
// of what is coded (row_scale.h: the row's mean square, more under feedback),
//     scale = sqrt(v) / spread,     spread 1.03, 0.98, 0.94: best on Gaussian weights.
// The authors' 1.03 at four bits has 10 % more error (the residual then leaves its codebook more
// often). They use one scale a matrix, and 0.9 at two bits under feedback, which widens what is
// coded; here v has it.
//
// Layout. codes: U16 [n_out, ceil(n_in / 8)], 256 * row + signs (e8p.h). scales: F16 [n_out].
// residual: U8 (bits=3) or U16 (bits=4) [n_out, ceil(n_in / 8)]. A last block of fewer weights is
// padded with zeros.
// Integer form (e8p_panels.h). At two bits a level is a quarter, exactly. With a residual it is the
// eighth of one: p has whole levels, those of q are rounded.
// Bits: bits + 16 / n_in. Search: all rows, exact. Reference: QuIP# (arXiv 2402.04396) section 4.
#include "codecs/e8p.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "codecs/e8p_panels.h"
#include "codecs/row_scale.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kInt, "2", 2, 4, {}, "bits of the codes per weight"},
    {"spread", ParamKind::kNumber, "0", 0, 4, {}, "deviation of weights / scale; 0: the best"},
};

struct Rate {
  E8pResidual residual;
  float ratio;  // what the residual is multiplied by
  double spread;
  double mse;  // on a unit Gaussian
};
constexpr Rate kRates[] = {
    {E8pResidual::kNone, 1.0f, 1.03, 0.0913},
    {E8pResidual::kE8, 2.04f, 0.98, 0.0295},
    {E8pResidual::kE8p, 3.45f, 0.94, 0.0087},
};

constexpr int64_t kBlock = 8;
constexpr int64_t kBatch = 256;  // blocks searched in one call

class E8pCodec final : public Codec {
 public:
  explicit E8pCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        bits_(static_cast<int>(params.integer("bits"))),
        rate_(kRates[bits_ - 2]),
        tables_(e8p_tables()) {
    if (params.number("spread") > 0) rate_.spread = params.number("spread");
  }

  std::string spec() const override { return spec_; }
  Claim claim() const override {
    const double mse = rate_.spread == kRates[bits_ - 2].spread ? rate_.mse : 0;
    return {static_cast<double>(bits_), mse, "exact search on a Gaussian; arXiv 2402.04396"};
  }
  int64_t block_cols() const override { return kBlock; }
  int64_t group_cols(int64_t n_in) const override { return std::max<int64_t>(1, n_in); }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    const int64_t blocks = ceil_div(n_in, kBlock);
    std::vector<PlaneSpec> planes = {{"codes", DType::kU16, {n_out, blocks}},
                                     {"scales", DType::kF16, {n_out}}};
    if (rate_.residual != E8pResidual::kNone) {
      planes.push_back(
          {"residual", residual_bytes() == 1 ? DType::kU8 : DType::kU16, {n_out, blocks}});
    }
    return planes;
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    fit_row_scales(source, rate_.mse, rate_.spread, codes.planes[1]);
  }

  void fit(MatrixView<const float>, std::span<const float>, int64_t, int64_t,
           const MutableCodes&) const override {}

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    const int64_t blocks = ceil_div(w.cols, kBlock), n = w.rows * blocks;
    alignas(64) float y[kBatch * kBlock];
    for (int64_t first = 0; first < n; first += kBatch) {
      const int64_t count = std::min(kBatch, n - first);
      for (int64_t b = 0; b < count; ++b) {
        const int64_t i = (first + b) / blocks, j = (first + b) % blocks * kBlock;
        take_block(w, i, j, row_scale(codes.planes[1], row + i), y + b * kBlock);
      }
      encode_batch(y, first, count, blocks, row, col / kBlock, codes);
    }
    const E8pKernels& kernel = e8p_kernels(kernels().isa);
    for (int64_t i = 0; i < w.rows; ++i) {
      kernel.decode_row(tables_, row_of(codes, row + i, col / kBlock, w.cols), w_hat.row(i));
    }
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const E8pKernels& kernel = e8p_kernels(kernels().isa);
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      kernel.decode_row(tables_, row_of(codes, i, 0, codes.n_in), dst);
    }
  }

  std::shared_ptr<const RuntimeForm> runtime_form(const CodesView& codes,
                                                  Reading reading) const override {
    if (reading != Reading::kPanels) return nullptr;
    return e8p_panel_form(spec_, rate_.residual, rate_.ratio, codes);
  }

 private:
  int64_t residual_bytes() const { return rate_.residual == E8pResidual::kE8 ? 1 : 2; }

  // n weights of a row from block `block` on.
  E8pRow row_of(const CodesView& codes, int64_t row, int64_t block, int64_t n) const {
    const int64_t place = row * ceil_div(codes.n_in, kBlock) + block;
    const auto* residual =
        rate_.residual == E8pResidual::kNone ? nullptr : codes.planes[2] + place * residual_bytes();
    return {reinterpret_cast<const uint8_t*>(codes.planes[0] + 2 * place),
            reinterpret_cast<const uint8_t*>(residual),
            n,
            row_scale(codes.planes[1], row),
            1.0f / rate_.ratio,
            rate_.residual};
  }

  static void take_block(MatrixView<const float> w, int64_t i, int64_t j, float scale, float* y) {
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    const int64_t width = std::min(kBlock, w.cols - j);
    for (int64_t k = 0; k < kBlock; ++k) y[k] = k < width ? w(i, j + k) * inverse : 0.0f;
  }

  // Codes blocks [first, first + count) of those of a strip, counted row by row, from y.
  void encode_batch(float* y, int64_t first, int64_t count, int64_t blocks, int64_t row,
                    int64_t block, const MutableCodes& codes) const {
    const E8pKernels& kernel = e8p_kernels(kernels().isa);
    const int64_t stride = ceil_div(codes.n_in, kBlock);
    const auto place = [&](int64_t b) {
      return (row + (first + b) / blocks) * stride + block + (first + b) % blocks;
    };
    uint16_t found[kBatch];
    kernel.nearest(tables_, y, count, found);
    for (int64_t b = 0; b < count; ++b) std::memcpy(codes.planes[0] + 2 * place(b), found + b, 2);
    if (rate_.residual == E8pResidual::kNone) return;
    for (int64_t b = 0; b < count; ++b) {
      int8_t point[kBlock];
      e8p_point(tables_, found[b], point);
      for (int64_t k = 0; k < kBlock; ++k) {
        float& entry = y[b * kBlock + k];
        entry = (entry - 0.25f * static_cast<float>(point[k])) * rate_.ratio;
      }
    }
    if (rate_.residual == E8pResidual::kE8) {
      uint8_t bytes[kBatch];
      kernel.nearest_e8(tables_, y, count, bytes);
      for (int64_t b = 0; b < count; ++b) codes.planes[2][place(b)] = std::byte{bytes[b]};
    } else {
      kernel.nearest(tables_, y, count, found);
      for (int64_t b = 0; b < count; ++b) std::memcpy(codes.planes[2] + 2 * place(b), found + b, 2);
    }
  }

  std::string spec_;
  int bits_;
  Rate rate_;
  const E8pTables& tables_;
};

constexpr std::string_view kExamples[] = {"e8p", "e8p(3)", "e8p(4)", "e8p(2, spread=0.9)"};

}  // namespace

extern const CodecInfo e8p_codec_info;
const CodecInfo e8p_codec_info = {
    .id = 10,
    .name = "e8p",
    .params = kParams,
    .summary = "eight weights as a point of a padded E8 lattice",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      return std::make_unique<E8pCodec>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
