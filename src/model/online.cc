// SPDX-License-Identifier: Apache-2.0
#include "model/online.h"

#include <algorithm>

#include "base/check.h"
#include "base/checked.h"
#include "base/parallel.h"
#include "tensor/scratch.h"

namespace quern {
namespace {

// Values that go through a chain together: 32 KB, so that they stay in a cache from one operator to
// the next and a matrix is read once for several rows.
constexpr int64_t kTogether = 8 << 10;
// Of rows that go through none, a thread takes so many values: for fewer none is woken.
constexpr int64_t kPassed = 256 << 10;

int64_t rows_of(int64_t values, int64_t cols) {
  return std::max<int64_t>(1, values / std::max<int64_t>(1, cols));
}

// x <- what `what` says of the chain.
void apply_rows(const Chain& chain, MatrixView<float> x, Online what) {
  parallel_for(x.rows, rows_of(kTogether, x.cols), [&](int64_t begin, int64_t end) {
    const int64_t together = x.stride == x.cols ? end - begin : 1;  // rows
    for (int64_t i = begin; i < end; i += together) {
      const int64_t count = together * x.cols;
      if (what == Online::kApply) chain.apply(x.row(i), count);
      if (what == Online::kInverse) chain.apply_inverse(x.row(i), count);
      if (what == Online::kInverseTranspose) chain.apply_inverse_transpose(x.row(i), count);
    }
  });
}

// Consecutive rows of x behind the chain, to y [n, x.cols].
void put_rows(const Chain& chain, MatrixView<const float> x, float* y) {
  const int64_t together = x.stride == x.cols ? x.rows : 1;
  for (int64_t i = 0; i < x.rows; i += together) {
    chain.apply_to(x.row(i), together * x.cols, y + i * x.cols);
  }
}

// place(first row) says where a few rows go, done(first row, end, place) follows.
template <class Place, class Done>
void put_in_parts(const OnlineChain& online, MatrixView<const float> x, const Place& place,
                  const Done& done) {
  const int64_t grain = rows_of(kTogether, x.cols);
  SpentTime spent;
  SpentTime* const time = online.time == nullptr ? nullptr : &spent;
  parallel_for(x.rows, grain, [&](int64_t begin, int64_t end) {
    float* const y = place(begin, end);
    spend(time, [&] { put_rows(*online.chain, x.row_range(begin, end - begin), y); });
    done(begin, end, y);
  });
  if (time == nullptr) return;
  const int64_t n_threads = std::min<int64_t>(thread_count(), ceil_div(x.rows, grain));
  online.time->nanoseconds += spent.nanoseconds / std::max<int64_t>(1, n_threads);
}

}  // namespace

void apply_online(const Chain& chain, MatrixView<float> x, SpentTime* time, Online what) {
  if (chain.empty()) return;
  spend(time, [&] { apply_rows(chain, x, what); });
}

void put_behind(const OnlineChain& online, MatrixView<const float> x, MatrixView<float> y) {
  QUERN_CHECK(!online.empty() && y.rows == x.rows && y.cols == x.cols && y.stride == y.cols);
  put_in_parts(
      online, x, [&](int64_t begin, int64_t) { return y.row(begin); },
      [](int64_t, int64_t, float*) {});
}

void for_rows_behind(const OnlineChain& online, MatrixView<const float> x,
                     const std::function<void(int64_t, const float*)>& body) {
  if (online.empty()) {
    parallel_for(x.rows, rows_of(kPassed, x.cols), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i, x.row(i));
    });
    return;
  }
  put_in_parts(
      online, x,
      [&](int64_t begin, int64_t end) {
        thread_local AlignedVector<float> rows;
        return grown(rows, (end - begin) * x.cols);
      },
      [&](int64_t begin, int64_t end, const float* rows) {
        for (int64_t i = begin; i < end; ++i) body(i, rows + (i - begin) * x.cols);
      });
}

}  // namespace quern
