// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include <gtest/gtest.h>

#include "codecs/test_matrices.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

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
  for (const Activations activations : {Activations::kInt8, Activations::kExact}) {
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
  for (const Activations activations : {Activations::kInt8, Activations::kExact}) {
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

}  // namespace
}  // namespace quern
