// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <algorithm>
#include <optional>

#include "base/checked.h"
#include "base/float_types.h"
#include "base/parallel.h"
#include "kernels/parity_testing.h"

namespace quern {
namespace {

struct Problem {
  int64_t n_q, n_ctx, d_head;
  std::vector<float> q, k, v, turned;
  std::vector<uint16_t> turned_half, v_half, k_pairs, v_pairs;
  std::vector<int64_t> first, last;
  float soft_cap = 0;
  DType dtype = DType::kF32;
  mutable std::optional<StoredBlocks> blocks;
  mutable KvSegment segment;

  Problem(int64_t n_q, int64_t n_ctx, int64_t d_head, uint64_t seed)
      : n_q(n_q), n_ctx(n_ctx), d_head(d_head) {
    Random random(seed);
    const auto draw = [&random](std::vector<float>& x, int64_t n) {
      x.resize(static_cast<size_t>(n));
      for (float& value : x) value = static_cast<float>(random.gaussian());
    };
    draw(q, n_q * d_head);
    draw(k, n_ctx * d_head);
    draw(v, n_ctx * d_head);
    for (std::vector<float>* x : {&q, &k, &v}) {  // exact in every type
      for (float& value : *x) {
        value = bf16_to_float(float_to_bf16(f16_to_float(float_to_f16(value))));
      }
    }
    // Positions past the last are never to show.
    turned.assign(static_cast<size_t>(round_up(n_ctx, kKeyBlock) * d_head), std::nanf(""));
    for (int64_t p = 0; p < n_ctx; ++p) {
      for (int64_t c = 0; c < d_head; ++c) {
        turned[(p / kKeyBlock * d_head + c) * kKeyBlock + p % kKeyBlock] = k[p * d_head + c];
      }
    }
    for (float value : turned) turned_half.push_back(float_to_f16(value));
    for (float value : v) v_half.push_back(float_to_f16(value));
    // Whole blocks of pairs; what is never to show is large.
    k_pairs.assign(turned.size(), float_to_bf16(1e30f));
    v_pairs.assign(turned.size(), float_to_bf16(1e30f));
    for (int64_t p = 0; p < n_ctx; ++p) {
      const int64_t block = p / kKeyBlock * kKeyBlock * d_head, row = p % kKeyBlock;
      for (int64_t c = 0; c < d_head; ++c) {
        k_pairs[block + pair_place(kKeyBlock, c, row)] = float_to_bf16(k[p * d_head + c]);
        v_pairs[block + pair_place(d_head, row, c)] = float_to_bf16(v[p * d_head + c]);
      }
    }
    for (int64_t i = 0; i < n_q; ++i) {  // causal, every third query with a window of 40
      const int64_t end = n_ctx - n_q + i + 1;
      last.push_back(std::max<int64_t>(end, 0));
      first.push_back(i % 3 == 2 ? std::max<int64_t>(end - 40, 0) : 0);
    }
  }

  // Valid until the next call.
  AttendArgs args(float* out, float* lse = nullptr, int64_t first_query = 0) const {
    const void *keys = turned.data(), *values = v.data();
    if (dtype == DType::kF16) {
      keys = turned_half.data();
      values = v_half.data();
    } else if (dtype == DType::kBF16) {
      keys = k_pairs.data();
      values = v_pairs.data();
    }
    blocks.emplace(keys, values, dtype, d_head);
    segment = {&*blocks, first.data() + first_query, last.data() + first_query};
    AttendArgs a;
    a.q = q.data();
    a.ld_q = d_head;
    a.n_q = n_q;
    a.d_head = d_head;
    a.segments = {&segment, 1};
    a.n_ctx = n_ctx;
    a.scale = 1 / std::sqrt(static_cast<float>(d_head));
    a.soft_cap = soft_cap;
    a.out = out;
    a.ld_out = d_head;
    a.lse = lse;
    return a;
  }
};

std::vector<float> attend_all(const Problem& p, const KernelTable& table = kernels()) {
  std::vector<float> out(static_cast<size_t>(p.n_q * p.d_head), 77.0f);
  attend(p.args(out.data()), table);
  return out;
}

// The definition in double, and for each query a bound of the float kernel's error: a score is off
// by at most `score_error` (d_head products of q and k, each rounded, and four more roundings); the
// weights then by a factor e^(2 score_error) and the roundings of exp and of the sum over n; the
// output by that share of sum |p v| and by one rounding per position. In bfloat16 weights lose the
// 2^-9 of a rounding, each and in their sum.
void expect_close(const Problem& p, const std::vector<float>& out, const std::vector<float>& lse) {
  constexpr double kEps = 0x1p-24;
  const double scale = 1 / std::sqrt(static_cast<double>(p.d_head));
  for (int64_t i = 0; i < p.n_q; ++i) {
    const int64_t first = p.first[i], n = p.last[i] - first;
    std::vector<double> score(static_cast<size_t>(std::max<int64_t>(n, 0)));
    double sum = 0, score_error = 0;
    for (int64_t j = 0; j < n; ++j) {
      double dot = 0, size = 0;
      for (int64_t c = 0; c < p.d_head; ++c) {
        const double term =
            static_cast<double>(p.q[i * p.d_head + c]) * p.k[(first + j) * p.d_head + c];
        dot += term;
        size += std::fabs(term);
      }
      score[j] = dot * scale;
      if (p.soft_cap != 0) score[j] = p.soft_cap * std::tanh(score[j] / p.soft_cap);
      score_error =
          std::max(score_error, size * scale * (static_cast<double>(p.d_head) + 4) * kEps);
      sum += std::exp(score[j]);
    }
    double relative = 2 * score_error + (static_cast<double>(n) * 1.1 + 40) * kEps;
    if (p.dtype == DType::kBF16) relative += 2.1 * 0x1p-9;
    for (int64_t c = 0; c < p.d_head; ++c) {
      double exact = 0, size = 0;
      for (int64_t j = 0; j < n; ++j) {
        const double term = std::exp(score[j]) / sum * p.v[(first + j) * p.d_head + c];
        exact += term;
        size += std::fabs(term);
      }
      ASSERT_NEAR(out[i * p.d_head + c], exact, relative * size) << "query " << i;
    }
    if (n > 0) {
      ASSERT_NEAR(lse[i], std::log(sum), relative + std::fabs(std::log(sum)) * kEps * 4);
    } else {
      ASSERT_EQ(lse[i], -std::numeric_limits<float>::infinity());
    }
  }
}

TEST(Attention, MatchesTheDefinitionInDouble) {
  uint64_t seed = 0;
  for (int64_t d_head : {8, 64, 80, 96, 128}) {
    for (int64_t n_q : {1, 3, 16, 33, 70}) {
      for (int64_t n_ctx : {1, 63, 64, 65, 200, 2300}) {
        if (n_ctx > 1000 && n_q % 16 != 1) continue;
        Problem p(n_q, n_ctx, d_head, ++seed);
        p.soft_cap = seed % 2 == 0 ? 3.0f : 0.0f;
        p.dtype = seed / 2 % 2 == 0 ? DType::kF32 : DType::kBF16;
        std::vector<float> out(static_cast<size_t>(n_q * d_head)), lse(static_cast<size_t>(n_q));
        attend(p.args(out.data(), lse.data()));
        SCOPED_TRACE(fmt::format("d_head={} n_q={} n_ctx={}", d_head, n_q, n_ctx));
        expect_close(p, out, lse);
      }
    }
  }
}

TEST(Attention, AQueryAloneHasTheBitsOfAQueryInATile) {
  for (int64_t n_ctx : {40, 129, 300, 1040, 5000}) {  // queries on both sides of a span's end
    Problem p(37, n_ctx, n_ctx == 300 ? 64 : 80, 5);
    p.dtype = n_ctx % 2 == 0 ? DType::kBF16 : DType::kF32;
    const std::vector<float> together = attend_all(p);
    std::vector<float> alone(together.size());
    for (int64_t i = 0; i < p.n_q; ++i) {
      AttendArgs a = p.args(alone.data() + i * p.d_head, nullptr, i);
      a.q += i * p.d_head;
      a.n_q = 1;
      attend(a);
    }
    EXPECT_EQ(together, alone);
  }
}

TEST(Attention, EveryIsaGivesTheSameBits) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t d_head : {64, 72}) {
      Problem p(18, 150, d_head, 6);
      p.dtype = dtype;
      p.soft_cap = 20;
      const std::vector<float> want = attend_all(p, kernels(Isa::kRef));
      for (Isa isa : testing::fast_isas()) EXPECT_EQ(attend_all(p, kernels(isa)), want);
    }
  }
}

TEST(Attention, StoredHalvesGiveTheBitsOfTheirFloats) {
  Problem p(21, 260, 64, 7);
  const std::vector<float> want = attend_all(p);
  p.dtype = DType::kF16;
  EXPECT_EQ(attend_all(p), want);
}

TEST(Attention, HeadsTogetherHaveTheBitsOfHeadsAlone) {
  constexpr int64_t kHeads = 7;
  for (int64_t n_q : {1, 5, 40}) {
    Problem p(n_q, 300, 64, 10);
    p.dtype = n_q == 5 ? DType::kF32 : DType::kBF16;
    const int64_t ld = kHeads * p.d_head + 5;
    std::vector<float> q(static_cast<size_t>(n_q * ld)), together(q.size()), alone(q.size());
    std::vector<float> lse(static_cast<size_t>(n_q * kHeads));
    testing::fill(q.data(), n_q * ld, testing::Fill::kGaussian, 11);
    AttendArgs a = p.args(together.data(), lse.data());
    a.q = q.data();
    a.ld_q = a.ld_out = ld;
    a.n_heads = kHeads;
    attend(a);
    a.n_heads = 1;
    for (int64_t h = 0; h < kHeads; ++h) {
      std::vector<float> lse_alone(static_cast<size_t>(n_q));
      a.q = q.data() + h * p.d_head;
      a.out = alone.data() + h * p.d_head;
      a.lse = lse_alone.data();
      attend(a);
      for (int64_t i = 0; i < n_q; ++i) EXPECT_EQ(lse[i * kHeads + h], lse_alone[i]);
    }
    EXPECT_EQ(together, alone);
  }
}

// Every query's positions cut at a place of its own, some at none: the later part from a copy, with
// what a segment must not show made NaN.
TEST(Attention, SegmentsAreInvisible) {
  for (int64_t n_q : {1, 6, 70}) {
    const Problem p(n_q, 300, 64, 12);
    const std::vector<float> want = attend_all(p);
    std::vector<int64_t> cut;
    for (int64_t i = 0; i < n_q; ++i) {
      const int64_t at = (i * 64) % 320 / kKeyBlock * kKeyBlock;
      cut.push_back(std::clamp(at, p.first[i], p.last[i]));
    }
    Problem early = p, late = p;
    const int64_t last_cut = *std::max_element(cut.begin(), cut.end());
    for (int64_t j = last_cut * p.d_head; j < 300 * p.d_head; ++j) early.v[j] = std::nanf("");
    std::vector<float> out(want.size());
    AttendArgs a = p.args(out.data());
    const StoredBlocks one(early.turned.data(), early.v.data(), DType::kF32, 64);
    const StoredBlocks two(late.turned.data(), late.v.data(), DType::kF32, 64);
    const KvSegment segments[] = {{&one, p.first.data(), cut.data()},
                                  {&two, cut.data(), p.last.data()}};
    a.segments = segments;
    attend(a);
    EXPECT_EQ(out, want);
  }
}

// Few jobs go span by span, many one by one.
TEST(Attention, JobsHaveTheBitsOfCallsWithAnyNumberOfThreads) {
  Problem p(5, 3000, 64, 13);
  for (const int64_t n_jobs : {1, 3, 40}) {
    p.dtype = n_jobs == 1 ? DType::kF32 : DType::kBF16;
    std::vector<float> out(static_cast<size_t>(n_jobs * p.n_q * p.d_head)), want(out.size());
    std::vector<AttendArgs> jobs;
    for (int64_t j = 0; j < n_jobs; ++j) {
      AttendArgs a = p.args(nullptr);
      a.n_q = 1 + j % p.n_q;
      a.out = want.data() + j * p.n_q * p.d_head;
      attend(a);
      a.out = out.data() + j * p.n_q * p.d_head;
      jobs.push_back(a);
    }
    for (const int n_threads : {1, 3}) {
      set_thread_count(n_threads);
      std::fill(out.begin(), out.end(), 7.0f);
      for (int64_t j = 0; j < n_jobs; ++j) {  // what a job does not write
        const auto at = static_cast<size_t>((j * p.n_q + 1 + j % p.n_q) * p.d_head);
        const auto end = static_cast<size_t>((j + 1) * p.n_q * p.d_head);
        std::fill(out.begin() + at, out.begin() + end, 0.0f);
      }
      attend(jobs);
      EXPECT_EQ(out, want) << n_jobs << " " << n_threads;
    }
    set_thread_count(0);
  }
}

void expect_weights(const Problem& p) {
  std::vector<float> out(static_cast<size_t>(p.n_q * p.d_head));
  std::vector<float> weights(static_cast<size_t>(p.n_q * p.n_ctx), 5.0f);
  AttendArgs a = p.args(out.data());
  a.weights = weights.data();
  attend(a);
  for (int64_t i = 0; i < p.n_q; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < p.n_ctx; ++j) {
      const float weight = weights[i * p.n_ctx + j];
      if (j < p.first[i] || j >= p.last[i]) {
        EXPECT_EQ(weight, 0.0f);
      }
      sum += weight;
    }
    // Each weight is off by the roundings of exp (1.5), 1 / sum and the product, within a span and
    // between the two.
    EXPECT_NEAR(sum, 1, 16 * 0x1p-24);
  }
}

TEST(Attention, WeightsAreTheSoftmaxOfWhatIsSeen) {
  Problem p(20, 1090, 16, 8);
  expect_weights(p);
  p.dtype = DType::kBF16;
  expect_weights(p);
}

TEST(Attention, AQueryThatSeesNothingGivesZeros) {
  Problem p(3, 10, 8, 9);
  p.first[1] = p.last[1] = 4;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    p.dtype = dtype;
    std::vector<float> out(24, 1.0f), lse(3);
    attend(p.args(out.data(), lse.data()));
    for (int64_t c = 0; c < 8; ++c) EXPECT_EQ(out[8 + c], 0.0f);
    EXPECT_EQ(lse[1], -std::numeric_limits<float>::infinity());
    expect_close(p, out, lse);
  }
}

}  // namespace
}  // namespace quern
