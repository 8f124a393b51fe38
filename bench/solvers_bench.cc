// SPDX-License-Identifier: Apache-2.0
// Solvers on one matrix of 4096 x 4096, all threads: factor, fit, codes and losses. Weights are
// Gaussian, and H_ij = 0.9^|i - j|.
#include <benchmark/benchmark.h>

#include <cmath>
#include <string>

#include "base/random.h"
#include "solvers/solver.h"

namespace quern {
namespace {

constexpr int64_t kSize = 4096;

struct Input {
  Matrix<float> w{kSize, kSize};
  Matrix<double> h{kSize, kSize};
};

const Input& input() {
  static const Input made = [] {
    Input result;
    Random random(1);
    for (int64_t i = 0; i < kSize; ++i) {
      for (int64_t j = 0; j < kSize; ++j) {
        result.w(i, j) = static_cast<float>(random.gaussian());
        result.h(i, j) = std::pow(0.9, static_cast<double>(std::abs(i - j)));
      }
    }
    return result;
  }();
  return made;
}

void solve(benchmark::State& state, const char* text) {
  const auto solver = make_solver(*spec::parse_call(text));
  if (!solver) return state.SkipWithError(solver.error().message.c_str());
  CodedMatrix codes = *CodedMatrix::create((*solver)->codec(), kSize, kSize);
  for (auto _ : state) {
    const auto report = (*solver)->solve({input().w.view(), input().h.view()}, codes);
    if (!report) return state.SkipWithError(report.error().message.c_str());
    state.counters["relative_loss"] = report->relative();
  }
  state.counters["weights/s"] = {static_cast<double>(kSize * kSize),
                                 benchmark::Counter::kIsIterationInvariantRate,
                                 benchmark::Counter::OneK::kIs1000};
}

constexpr const char* kTexts[] = {
    "rtn(int(4))",
    "ldlq(int(4))",
    "beam(int(3), width=8)",
    "ldlq(trellis(2))",
    "block_ldlq(e8p)",
    "block_ldlq(e8p, descent=1)",
    "block_ldlq(pvq(2))",
    "block_ldlq(qtip(2, state_bits=12))",
    "block_ldlq(additive(2, 8))",
    "block_ldlq(additive(1, 16))",
};

[[maybe_unused]] const bool kRegistered = [] {
  for (const char* text : kTexts) {
    benchmark::RegisterBenchmark((std::string("solve/") + text).c_str(), solve, text)
        ->Unit(benchmark::kSecond)
        ->Iterations(1)
        ->MeasureProcessCPUTime()
        ->UseRealTime();
  }
  return true;
}();

}  // namespace
}  // namespace quern
