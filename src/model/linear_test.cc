// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include <gtest/gtest.h>

#include <cmath>

#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr Activations kAll[] = {Activations::kExact, Activations::kBf16, Activations::kInt8};

struct Coded {
  std::unique_ptr<Codec> codec;
  CodedMatrix codes;
  LinearWeight weight;

  Coded(const char* spec, int64_t n_out, int64_t n_in, Activations activations, uint64_t seed)
      : codec(std::move(*make_codec(spec))),
        codes(code_matrix(*codec, gaussian(n_out, n_in, seed))) {
    weight.n_out = n_out;
    weight.n_in = n_in;
    weight.codec = codec.get();
    weight.codes = codes.view();
    weight.activations = activations;
    for (int64_t i = 0; i < n_out; ++i) weight.bias.push_back(0.01f * static_cast<float>(i));
    weight = in_runtime_form(std::move(weight), *codec);
  }
};

TEST(Linear, GatedIsTheTwoProductsAndTheActivation) {
  constexpr int64_t kOut = 200, kIn = 320;
  for (const Activations activations : kAll) {
    // Codecs of one form, and such as are cut differently.
    for (const char* of_up : {"int(4, group=64)", "int(4)", "e8p"}) {
      const Coded gate("int(4, group=64)", kOut, kIn, activations, 1);
      const Coded up(of_up, kOut, kIn, activations, 2);
      for (const int64_t n : {1, 3, 40}) {
        const Matrix<float> x = gaussian(n, kIn, 3);
        Matrix<float> expected(n, kOut), u(n, kOut), got(n, kOut);
        linear(gate.weight, x.view(), expected.view());
        linear(up.weight, x.view(), u.view());
        for (int64_t i = 0; i < n; ++i) {
          kernels().activate_gated(Activation::kSilu, u.row(i), kOut, expected.row(i));
        }
        linear_gated(gate.weight, up.weight, Activation::kSilu, x.view(), got.view());
        EXPECT_EQ(got, expected) << of_up << " " << n;
      }
    }
  }
}

TEST(Linear, AnMlpIsItsProducts) {
  constexpr int64_t kFfn = 600, kIn = 320, kOut = 80;
  for (const Activations activations : kAll) {
    for (const char* of_down : {"int(4, group=64)", "int(4)", "int(3, group=96)", "e8p"}) {
      const Coded gate("int(4)", kFfn, kIn, activations, 1),
          up("int(4)", kFfn, kIn, activations, 2);
      const Coded down(of_down, kOut, kFfn, activations, 3);
      for (const int64_t n : {1, 40, 300}) {
        const Matrix<float> x = gaussian(n, kIn, 4);
        Matrix<float> middle(n, kFfn), expected(n, kOut), got(n, kOut);
        linear_gated(gate.weight, up.weight, Activation::kSilu, x.view(), middle.view());
        linear(down.weight, middle.view(), expected.view());
        linear_mlp(gate.weight, up.weight, down.weight, Activation::kSilu, x.view(), got.view());
        EXPECT_EQ(got, expected) << of_down << " " << n;
      }
    }
  }
}

// x W^T + bias with both rounded to bfloat16, in double, and the sum of what rounds.
struct Bf16Product {
  Matrix<double> y, size;

  Bf16Product(const Matrix<float>& x, const LinearWeight& weight)
      : y(x.rows(), weight.n_out), size(x.rows(), weight.n_out) {
    const auto rounded = [](const Matrix<float>& matrix) {
      Matrix<float> nearest(matrix.rows(), matrix.cols());
      kernels().round_bf16(matrix.data(), matrix.rows() * matrix.cols(), nearest.data());
      return nearest;
    };
    Matrix<float> w(weight.n_out, weight.n_in);
    decode_rows(weight, 0, weight.n_out, w.data());
    const Matrix<float> a = rounded(x), b = rounded(w);
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t j = 0; j < weight.n_out; ++j) {
        if (!weight.bias.empty()) y(i, j) = weight.bias[static_cast<size_t>(j)];
        for (int64_t p = 0; p < weight.n_in; ++p) {
          const double term = static_cast<double>(a(i, p)) * b(j, p);
          y(i, j) += term;
          size(i, j) += std::fabs(term);
        }
      }
    }
  }
};

void expect_bf16_product(const LinearWeight& weight, const std::string& what) {
  const Matrix<float> all = gaussian(40, weight.n_in, 9);
  const Bf16Product want(all, weight);
  Matrix<float> whole(40, weight.n_out);
  linear(weight, all.view(), whole.view());
  for (int64_t i = 0; i < 40; ++i) {
    for (int64_t j = 0; j < weight.n_out; ++j) {
      ASSERT_NEAR(whole(i, j), want.y(i, j), 40 * 0x1p-24 * want.size(i, j)) << what;
    }
  }
  // Rows alone and together, by vectors and by tiles.
  for (const int64_t n : {1, 3, 9, 12}) {
    Matrix<float> some(n, weight.n_out);
    linear(weight, all.view().row_range(0, n), some.view());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < weight.n_out; ++j) ASSERT_EQ(some(i, j), whole(i, j)) << what;
    }
  }
}

TEST(LinearInBf16, IsTheProductOfBothRoundedHowManyRowsThereAre) {
  for (const int64_t n_in : {70, 320, 1100}) {
    for (const int64_t n_out : {5, 32, 200}) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        const Matrix<float> values = gaussian(n_out, n_in, 11);
        std::vector<std::byte> stored(static_cast<size_t>(n_out * n_in * 4));
        convert_from_float(values.data(), n_out * n_in, dtype, stored.data());
        LinearWeight dense;
        dense.n_out = n_out;
        dense.n_in = n_in;
        dense.dtype = dtype;
        dense.dense = stored.data();
        dense.activations = Activations::kBf16;
        const LinearWeight paired = in_runtime_form(dense);
        ASSERT_NE(paired.pairs, nullptr);
        Matrix<float> row(1, n_in), again(1, n_in);
        decode_rows(dense, n_out - 1, 1, row.data());
        kernels().round_bf16(row.data(), n_in, row.data());
        decode_rows(paired, n_out - 1, 1, again.data());
        EXPECT_EQ(again, row);
        expect_bf16_product(dense, "dense");
        expect_bf16_product(paired, "in pairs");
      }
    }
  }
  for (const char* codec : {"int(4, group=64)", "e8p", "trellis(2)", "ternary"}) {
    expect_bf16_product(Coded(codec, 200, 320, Activations::kBf16, 5).weight, codec);
  }
}

}  // namespace
}  // namespace quern
