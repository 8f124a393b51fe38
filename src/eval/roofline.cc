// SPDX-License-Identifier: Apache-2.0
#include "eval/roofline.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "base/checked.h"
#include "base/parallel.h"
#include "kernels/peaks.h"
#include "tensor/matrix.h"

namespace quern {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPiece = 4 << 20;  // bytes that a thread takes at a time
constexpr size_t kLeastBytes = 256 << 20;
constexpr double kPeakSeconds = 2e-3;  // of one try of one thread

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The shortest of at least three tries, as many as fit in `budget` seconds.
double best_seconds(double budget, const std::function<void()>& work) {
  double best = seconds_of(work), spent = best;
  for (int i = 1; i < 3 || spent < budget; ++i) {
    const double seconds = seconds_of(work);
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

size_t bytes_past_caches() {
  const long last_cache = ::sysconf(_SC_LEVEL3_CACHE_SIZE);  // 0 or -1: not known
  return std::max(kLeastBytes, 4 * static_cast<size_t>(std::max(0L, last_cache)));
}

// `work` handles the bytes from an offset on; `n_bytes` is a multiple of kPiece.
Limit measure_stream(std::string name, size_t n_bytes, double counted, double budget,
                     const std::function<void(size_t)>& work) {
  const auto n = static_cast<int64_t>(n_bytes / kPiece);
  const auto pieces = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(static_cast<size_t>(i) * kPiece);
  };
  const double one = best_seconds(budget / 2, [&] { pieces(0, n); });
  const double all = best_seconds(budget / 2, [&] { parallel_for(n, 1, pieces); });
  return {std::move(name), counted / one, counted / all};
}

Limit measure_peak(const PeakLoop& loop, double budget) {
  int64_t n_turns = 1000;
  while (seconds_of([&] { loop.run(n_turns); }) < kPeakSeconds) n_turns *= 2;
  const double operations = loop.operations * static_cast<double>(n_turns);
  const double one = best_seconds(budget / 2, [&] { loop.run(n_turns); });
  const double all = best_seconds(budget / 2, [&] {
    parallel_for(thread_count(), 1, [&](int64_t, int64_t) { loop.run(n_turns); });
  });
  return {std::string(loop.name), operations / one, operations * thread_count() / all};
}

}  // namespace

const Limit* Roofline::peak(std::string_view name) const {
  const auto found =
      std::find_if(peaks.begin(), peaks.end(), [&](const Limit& l) { return l.name == name; });
  return found == peaks.end() ? nullptr : &*found;
}

Result<Roofline> measure_roofline(const RooflineOptions& options) {
  const std::vector<PeakLoop> loops = peak_loops();
  const double n_limits = static_cast<double>(loops.size()) + 2;
  double n_done = 0;
  const auto proceed = [&](std::string_view what) -> Status {
    if (options.proceed(n_done++ / n_limits, what)) return {};
    return cancelled();
  };
  Roofline roofline;
  {
    QUERN_TRY(proceed("read"));
    const StreamLoops streams = stream_loops();
    const size_t n = round_up(options.n_bytes == 0 ? bytes_past_caches() : options.n_bytes, kPiece);
    const AlignedVector<std::byte> src(n, std::byte{1});
    AlignedVector<std::byte> dst(n);
    const auto bytes = static_cast<double>(n);
    roofline.read = measure_stream("read", n, bytes, options.seconds,
                                   [&](size_t at) { streams.read(src.data() + at, kPiece); });
    QUERN_TRY(proceed("copy"));
    roofline.copy = measure_stream("copy", n, 2 * bytes, options.seconds, [&](size_t at) {
      streams.copy(src.data() + at, kPiece, dst.data() + at);
    });
  }
  for (const PeakLoop& loop : loops) {
    QUERN_TRY(proceed(loop.name));
    roofline.peaks.push_back(measure_peak(loop, options.seconds));
  }
  return roofline;
}

}  // namespace quern
