// SPDX-License-Identifier: Apache-2.0
// Every slot of every ISA against the reference, bit for bit: all sizes, unaligned starts, special
// values, and nothing written outside the output.
#include "kernels/kernels.h"

#include <functional>

#include "kernels/parity_testing.h"

namespace quern {
namespace {

using testing::Fill;
using testing::Guarded;
using testing::kSizes;
using testing::same_bits;

struct Case {
  int64_t n;
  int64_t offset;
  Fill kind;
  uint64_t seed;
};

// Calls `check` for every ISA and case.
void for_each_case(const std::function<void(const KernelTable&, const Case&)>& check) {
  for (Isa isa : testing::fast_isas()) {
    uint64_t seed = 1;
    for (int64_t n : kSizes) {
      for (int64_t offset : {0, 1, 5}) {
        for (Fill kind : {Fill::kGaussian, Fill::kSpecial}) {
          SCOPED_TRACE(fmt::format("{} n={} offset={} special={}", isa_name(isa), n, offset,
                                   kind == Fill::kSpecial));
          check(kernels(isa), Case{n, offset, kind, ++seed});
        }
      }
    }
  }
}

Guarded<float> input(const Case& c, uint64_t which, int64_t n = -1) {
  Guarded<float> x(n < 0 ? c.n : n, (c.offset * static_cast<int64_t>(which)) % 7);
  testing::fill(x.data(), x.size(), c.kind, 10 * c.seed + which);
  return x;
}

void expect_same(Guarded<float>& got, Guarded<float>& want) {
  ASSERT_TRUE(got.guards_hold());
  for (int64_t i = 0; i < want.size(); ++i) {
    ASSERT_TRUE(same_bits(got[i], want[i]))
        << "element " << i << ": " << got[i] << " instead of " << want[i];
  }
}

// Runs `op(table, y)` on equal copies of `start` and compares what it left there.
template <class Op>
void compare(const KernelTable& table, Guarded<float> start, Op op) {
  Guarded<float> want = start;
  op(table, start.data());
  op(kernels(Isa::kRef), want.data());
  expect_same(start, want);
}

// From one place to another: the bits of the operation in place, and the source stays.
template <class InPlace, class Op>
void expect_alike_elsewhere(const KernelTable& table, const Case& c, InPlace in_place, Op op) {
  Guarded<float> x = input(c, 1), before = x, want = x, got = input(c, 9);
  in_place(table, want.data());
  op(x.data(), got.data());
  expect_same(got, want);
  expect_same(x, before);
}

TEST(Kernels, TheBestIsaIsOneTheHostHas) {
  EXPECT_TRUE(host_has(best_isa()));
  EXPECT_EQ(kernels().isa, std::min(best_isa(), Isa::kAvx512));  // tiles are none of its vectors
  EXPECT_EQ(kernels(Isa::kRef).isa, Isa::kRef);
}

TEST(Kernels, ConversionsAgree) {
  for_each_case([](const KernelTable& table, const Case& c) {
    const KernelTable& ref = kernels(Isa::kRef);
    Guarded<uint16_t> bits(c.n, c.offset);
    Random random(c.seed);
    for (int64_t i = 0; i < c.n; ++i) bits[i] = static_cast<uint16_t>(random.next());
    compare(table, input(c, 1),
            [&](const KernelTable& t, float* y) { t.bf16_to_float(bits.data(), c.n, y); });
    compare(table, input(c, 1),
            [&](const KernelTable& t, float* y) { t.f16_to_float(bits.data(), c.n, y); });
    Guarded<float> x = input(c, 2);
    Guarded<uint16_t> got(c.n, 3), want(c.n, 3);
    table.float_to_f16(x.data(), c.n, got.data());
    ref.float_to_f16(x.data(), c.n, want.data());
    EXPECT_TRUE(got.guards_hold());
    for (int64_t i = 0; i < c.n; ++i) ASSERT_EQ(got[i], want[i]) << x[i];
  });
}

TEST(Kernels, EveryHalfConvertsAlikeToTheBit) {
  std::vector<uint16_t> bits(0x10000);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  std::vector<float> want(bits.size()), got(bits.size());
  const auto n = static_cast<int64_t>(bits.size());
  kernels(Isa::kRef).f16_to_float(bits.data(), n, want.data());
  for (Isa isa : testing::fast_isas()) {
    kernels(isa).f16_to_float(bits.data(), n, got.data());
    for (size_t i = 0; i < bits.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i])) << i;
    }
  }
}

TEST(Kernels, DotAgrees) {
  for_each_case([](const KernelTable& table, const Case& c) {
    Guarded<float> a = input(c, 1), b = input(c, 2);
    const float got = table.dot(a.data(), b.data(), c.n);
    const float want = kernels(Isa::kRef).dot(a.data(), b.data(), c.n);
    EXPECT_TRUE(same_bits(got, want)) << got << " instead of " << want;
  });
}

TEST(Kernels, EveryElementOfATileIsADot) {
  const int64_t counts[] = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 17, 33};
  for (Isa isa : testing::fast_isas()) {
    uint64_t seed = 0;
    for (int64_t k : {1, 3, 8, 15, 16, 17, 33, 64, 100}) {
      for (int64_t n_x : counts) {
        for (int64_t n_w : counts) {
          const Case c{k, 1, Fill::kGaussian, ++seed};
          const int64_t ld_x = k + 3, ld_w = k + 1, ld_y = n_w + 2;
          Guarded<float> x = input(c, 1, n_x * ld_x), w = input(c, 2, n_w * ld_w);
          Guarded<float> y = input(c, 3, n_x * ld_y), before = y;
          kernels(isa).dot_tile(x.data(), ld_x, n_x, w.data(), ld_w, n_w, k, y.data(), ld_y);
          ASSERT_TRUE(y.guards_hold());
          for (int64_t i = 0; i < n_x; ++i) {
            for (int64_t j = 0; j < ld_y; ++j) {
              const float want = j < n_w
                                     ? kernels(isa).dot(x.data() + i * ld_x, w.data() + j * ld_w, k)
                                     : before[i * ld_y + j];
              ASSERT_TRUE(same_bits(y[i * ld_y + j], want))
                  << isa_name(isa) << " k=" << k << " n_x=" << n_x << " n_w=" << n_w << " at " << i
                  << ", " << j;
            }
          }
        }
      }
    }
  }
}

TEST(Kernels, TilesOfLongRowsAreDots) {
  for (Isa isa : testing::fast_isas()) {
    for (int64_t k : {1537, 2048, 2500, 4096}) {
      for (int64_t n_x : {1, 7, 9, 64, 75, 140}) {
        const int64_t n_w = 13;
        const Case c{k, 1, Fill::kGaussian, static_cast<uint64_t>(k + n_x)};
        Guarded<float> x = input(c, 1, n_x * k), w = input(c, 2, n_w * k),
                       y = input(c, 3, n_x * n_w);
        kernels(isa).dot_tile(x.data(), k, n_x, w.data(), k, n_w, k, y.data(), n_w);
        ASSERT_TRUE(y.guards_hold());
        for (int64_t i = 0; i < n_x; ++i) {
          for (int64_t j = 0; j < n_w; ++j) {
            const float want = kernels(isa).dot(x.data() + i * k, w.data() + j * k, k);
            ASSERT_TRUE(same_bits(y[i * n_w + j], want)) << k << " " << n_x << " " << i << " " << j;
          }
        }
      }
    }
  }
}

TEST(Kernels, ElementwiseOperationsAgree) {
  for_each_case([](const KernelTable& table, const Case& c) {
    Guarded<float> x = input(c, 1), b = input(c, 2);
    const int64_t n = c.n;
    const float a = 1.7f;
    compare(table, input(c, 3), [&](const KernelTable& t, float* y) { t.axpy(a, x.data(), n, y); });
    compare(table, input(c, 3), [&](const KernelTable& t, float* y) { t.add(x.data(), n, y); });
    compare(table, input(c, 3), [&](const KernelTable& t, float* y) { t.scale(a, n, y); });
    compare(table, input(c, 3),
            [&](const KernelTable& t, float* y) { t.multiply(x.data(), b.data(), n, y); });
    compare(table, input(c, 3),
            [&](const KernelTable& t, float* y) { t.multiply(y, b.data(), n, y); });
  });
}

TEST(Kernels, WeightedSumsOfRowsAgree) {
  for_each_case([](const KernelTable& table, const Case& c) {
    for (int64_t n_y : {1, 2, 3, 4, 5, 9, 12}) {
      const int64_t n_v = c.seed % 19, ld_v = c.n + 2, ld_a = n_v + 1, ld_y = c.n + 1;
      Guarded<float> v = input(c, 1, n_v * ld_v + 1), a = input(c, 2, n_y * ld_a);
      compare(table, input(c, 3, n_y * ld_y), [&](const KernelTable& t, float* y) {
        t.axpy_rows(a.data(), ld_a, n_y, v.data(), ld_v, n_v, c.n, y, ld_y);
      });
      Guarded<uint16_t> halves(n_v * ld_v + 1, c.offset);
      table.float_to_f16(v.data(), n_v * ld_v + 1, halves.data());
      table.f16_to_float(halves.data(), n_v * ld_v + 1, v.data());
      Guarded<float> want = input(c, 3, n_y * ld_y), got = want;
      compare(table, got, [&](const KernelTable& t, float* y) {
        t.axpy_rows_half(a.data(), ld_a, n_y, halves.data(), ld_v, n_v, c.n, y, ld_y);
      });
      table.axpy_rows(a.data(), ld_a, n_y, v.data(), ld_v, n_v, c.n, want.data(), ld_y);
      table.axpy_rows_half(a.data(), ld_a, n_y, halves.data(), ld_v, n_v, c.n, got.data(), ld_y);
      for (int64_t i = 0; i < n_y * ld_y; ++i) ASSERT_TRUE(same_bits(got[i], want[i])) << i;
    }
  });
}

TEST(Kernels, SubtractedRowsAgree) {
  for_each_case([](const KernelTable& table, const Case& c) {
    for (int64_t n_y : {1, 3, 4, 8, 13, 17}) {
      const int64_t n_v = static_cast<int64_t>(c.seed) % 19, ld_v = c.n + 2, ld_a = n_v + 1;
      const int64_t ld_y = c.n + 1;
      const auto doubles = [&c](uint64_t which, int64_t n) {
        Guarded<float> from = input(c, which, n);
        Guarded<double> to(n, c.offset);
        // Thirds, so that products do not fit in a double and fusing shows.
        for (int64_t i = 0; i < n; ++i) to[i] = from[i] / 3.0;
        return to;
      };
      Guarded<double> v = doubles(1, n_v * ld_v + 1), a = doubles(2, n_y * ld_a);
      Guarded<double> got = doubles(3, n_y * ld_y), want = got;
      table.subtract_rows(a.data(), ld_a, n_y, v.data(), ld_v, n_v, c.n, got.data(), ld_y);
      kernels(Isa::kRef).subtract_rows(a.data(), ld_a, n_y, v.data(), ld_v, n_v, c.n, want.data(),
                                       ld_y);
      ASSERT_TRUE(got.guards_hold());
      for (int64_t i = 0; i < n_y * ld_y; ++i) {
        ASSERT_TRUE(same_bits(got[i], want[i])) << "n_y=" << n_y << " element " << i;
      }
    }
  });
}

TEST(Kernels, NormsAgree) {
  for_each_case([](const KernelTable& table, const Case& c) {
    Guarded<float> x = input(c, 1), gain = input(c, 2), bias = input(c, 4);
    const int64_t n = c.n;
    for (const float* g :
         {static_cast<const float*>(nullptr), static_cast<const float*>(gain.data())}) {
      compare(table, input(c, 3),
              [&](const KernelTable& t, float* y) { t.rms_norm(x.data(), g, 1e-5f, n, y); });
      for (const float* b :
           {static_cast<const float*>(nullptr), static_cast<const float*>(bias.data())}) {
        compare(table, input(c, 3),
                [&](const KernelTable& t, float* y) { t.layer_norm(x.data(), g, b, 1e-5f, n, y); });
        compare(table, input(c, 3),
                [&](const KernelTable& t, float* y) { t.layer_norm(y, g, b, 1e-5f, n, y); });
      }
    }
  });
}

TEST(Kernels, ActivationsAgree) {
  for_each_case([](const KernelTable& table, const Case& c) {
    Guarded<float> up = input(c, 1);
    for (Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                                  Activation::kRelu, Activation::kRelu2}) {
      compare(table, input(c, 3),
              [&](const KernelTable& t, float* y) { t.activate(activation, c.n, y); });
      compare(table, input(c, 3), [&](const KernelTable& t, float* y) {
        t.activate_gated(activation, up.data(), c.n, y);
      });
    }
    compare(table, input(c, 3), [&](const KernelTable& t, float* y) { t.soft_cap(30, c.n, y); });
  });
}

TEST(Kernels, SoftmaxAgrees) {
  for_each_case([](const KernelTable& table, const Case& c) {
    const KernelTable& ref = kernels(Isa::kRef);
    Guarded<float> x = input(c, 1);
    EXPECT_TRUE(same_bits(table.max(x.data(), c.n), ref.max(x.data(), c.n)));
    EXPECT_TRUE(same_bits(table.log_sum_exp(x.data(), c.n), ref.log_sum_exp(x.data(), c.n)));
    for (const float a : {1.0f, 0.3f}) {
      float got = 0, want = 0;
      compare(table, input(c, 3), [&](const KernelTable& t, float* y) {
        t.softmax(a, c.n, y, &t == &ref ? &want : &got);
      });
      EXPECT_TRUE(same_bits(got, want)) << got << " instead of " << want;
      compare(table, input(c, 3),
              [&](const KernelTable& t, float* y) { t.softmax(a, c.n, y, nullptr); });
    }
  });
}

TEST(Kernels, RopeAgrees) {
  for_each_case([](const KernelTable& table, const Case& c) {
    Guarded<float> cosine = input(c, 1), sine = input(c, 2);
    compare(table, input(c, 3, 2 * c.n), [&](const KernelTable& t, float* y) {
      t.rope(cosine.data(), sine.data(), 2 * c.n, y);
    });
  });
}

TEST(Kernels, HadamardAgrees) {
  for (Isa isa : testing::fast_isas()) {
    for (int log2_n = 0; log2_n <= 13; ++log2_n) {
      for (int64_t offset : {0, 1}) {
        const Case c{int64_t{1} << log2_n, offset, Fill::kGaussian, 7};
        SCOPED_TRACE(fmt::format("{} 2^{}", isa_name(isa), log2_n));
        Guarded<float> signs = input(c, 2);
        for (int64_t i = 0; i < c.n; ++i) signs[i] = signs[i] < 0 ? -1.0f : 1.0f;
        const float* const no_signs = nullptr;
        for (const float* s : {no_signs, static_cast<const float*>(signs.data())}) {
          const auto in_place = [&](const KernelTable& t, float* y) {
            t.fwht(log2_n, s, 0.37f, y, y);
          };
          compare(kernels(isa), input(c, 1), in_place);
          expect_alike_elsewhere(kernels(isa), c, in_place, [&](const float* x, float* y) {
            kernels(isa).fwht(log2_n, s, 0.37f, x, y);
          });
        }
      }
    }
  }
}

TEST(Kernels, HadamardOverRowsAgrees) {
  for (Isa isa : testing::fast_isas()) {
    for (int log2_n = 0; log2_n <= 7; ++log2_n) {
      for (int64_t width : {1, 2, 3, 15, 16, 17, 31, 33, 64, 80, 128}) {
        const Case c{width << log2_n, width % 2, Fill::kGaussian, 8};
        SCOPED_TRACE(fmt::format("{} 2^{} x {}", isa_name(isa), log2_n, width));
        const auto in_place = [&](const KernelTable& t, float* y) {
          t.fwht_rows(log2_n, width, 0.37f, y, y);
        };
        compare(kernels(isa), input(c, 1), in_place);
        expect_alike_elsewhere(kernels(isa), c, in_place, [&](const float* x, float* y) {
          kernels(isa).fwht_rows(log2_n, width, 0.37f, x, y);
        });
      }
    }
  }
}

TEST(Kernels, SumsOverAMatrixOfSignsAgree) {
  Random random(9);
  for (Isa isa : testing::fast_isas()) {
    for (int64_t k : {4, 12, 44, 48, 52, 172}) {
      std::vector<float> sign(static_cast<size_t>(k * k / 4));
      std::vector<uint8_t> pattern(sign.size());
      for (size_t i = 0; i < sign.size(); ++i) {
        sign[i] = random.below(2) == 0 ? 1.0f : -1.0f;
        pattern[i] = static_cast<uint8_t>(random.below(8));
      }
      const HadamardTerms terms{k, sign.data(), pattern.data()};
      for (int64_t width : {1, 3, 15, 16, 17, 32, 33, 64, 80, 128, 131}) {
        SCOPED_TRACE(fmt::format("{} {} x {}", isa_name(isa), k, width));
        for (const Fill fill : {Fill::kGaussian, Fill::kSpecial}) {
          const Case c{k * width, width % 2, fill, 9};
          Guarded<float> x = input(c, 1);
          compare(kernels(isa), input(c, 2), [&](const KernelTable& t, float* y) {
            t.hadamard_mix(terms, x.data(), width, y);
          });
        }
      }
    }
  }
}

}  // namespace
}  // namespace quern
