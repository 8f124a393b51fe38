// SPDX-License-Identifier: Apache-2.0
// One linear layer as the runtime sees it: dense rows of a plain float type, or codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "activations/act_quantizer.h"
#include "codecs/codec.h"
#include "kernels/activation.h"
#include "model/online.h"
#include "tensor/dtype.h"
#include "tensor/matrix.h"

namespace quern {

// How a weight meets its input. kExact: in float, to the bit. kBf16: both rounded to bfloat16 (see
// kernels/pair_product.h), which is several times faster over a prompt where the processor has
// tiles. kInt8: a coded weight and its input rounded to 8 bits in groups (see kernels/panels.h),
// several times faster everywhere; a dense one in float. Where the model itself says how inputs are
// rounded, that is done instead.
enum class Activations : uint8_t { kExact, kBf16, kInt8 };
inline constexpr std::string_view kActivationsNames[] = {"exact", "bf16", "int8"};
inline constexpr std::string_view activations_name(Activations activations) {
  return kActivationsNames[static_cast<size_t>(activations)];
}

// Views: the bytes belong to a checkpoint, or to `owner`.
struct LinearWeight {
  int64_t n_out = 0, n_in = 0;
  DType dtype = DType::kF32;         // of `dense`: F32, F16, BF16
  const std::byte* dense = nullptr;  // [n_out, n_in]; null when coded or in pairs
  const uint16_t* pairs = nullptr;   // in place of `dense`: see in_runtime_form
  const Decoder* codec = nullptr;    // null when dense
  CodesView codes;
  Activations activations = Activations::kExact;
  std::shared_ptr<const ActRounding> rounding;  // of a coded weight; null: as `activations` says
  std::vector<float> bias;                      // [n_out] or empty
  std::shared_ptr<const void> owner;            // keeps the bytes alive; may be null

  bool exists() const { return n_out > 0; }
  // Whether it meets its input as integers.
  bool is_int8() const {
    if (codec == nullptr) return false;
    return rounding != nullptr ? rounding->act->form() == ActForm::kLevels
                               : activations == Activations::kInt8;
  }
  // Whether both are rounded to bfloat16.
  bool is_bf16() const { return rounding == nullptr && activations == Activations::kBf16; }
  // Bytes read to use the weight once.
  size_t n_bytes() const;
};

// y[n, n_out] = x[n, n_in] W^T + bias. Every entry has the bits of one 16-lane dot over the decoded
// row, or of its sum of pairs, or of the integer product over its panel, so neither the batch nor
// the number of threads matters.
void linear(const LinearWeight& weight, MatrixView<const float> x, MatrixView<float> y,
            const OnlineChain& online = {});

// Several products of one input, each as above, at the cost of one call: the input is rounded once,
// and threads share all the work. What they read is x behind the chain `online`: where all products
// round alike a few rows go through it just before they are rounded, so that a row passes through
// memory once; the bits are those of rows that went through it before.
struct Product {
  const LinearWeight* weight;
  MatrixView<float> y;
};
void linear(std::span<const Product> products, MatrixView<const float> x,
            const OnlineChain& online = {});

// y <- act(gate x) * (up x), with the bits of the two products and KernelTable::activate_gated.
void linear_gated(const LinearWeight& gate, const LinearWeight& up, Activation activation,
                  MatrixView<const float> x, MatrixView<float> y, const OnlineChain& online = {});

// y <- down (act(gate x) * (up x)), with the bits of linear_gated and linear.
void linear_mlp(const LinearWeight& gate, const LinearWeight& up, const LinearWeight& down,
                Activation activation, MatrixView<const float> x, MatrixView<float> y,
                const OnlineChain& online = {});

// A coded weight in its codec's runtime form, if there is one, else as it is. `codec` must be that
// of weight.codes. Where many rows are read for every token.
LinearWeight in_runtime_form(LinearWeight weight, const Codec& codec);
// A dense weight that meets its inputs as bfloat16 as the pairs of that product; any other as it
// is. Likewise.
LinearWeight in_runtime_form(LinearWeight dense);

// Whether the rounding of a weight's inputs, if it has one, fits its form.
Status check_rounding(const LinearWeight& weight);

// A dense weight that owns its values.
LinearWeight dense_weight(Matrix<float> values, std::vector<float> bias);

// A coded weight that owns its codes; the codec must outlive it.
LinearWeight coded_weight(CodedMatrix codes, const Codec& codec, std::vector<float> bias);

// Values of rows [row, row + n_rows): dst[n_rows, n_in].
void decode_rows(const LinearWeight& weight, int64_t row, int64_t n_rows, float* dst);

}  // namespace quern
