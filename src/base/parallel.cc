// SPDX-License-Identifier: Apache-2.0
// A pool of workers that sleep between jobs. A worker first spins for some microseconds, because
// one generated token issues hundreds of small jobs, and then waits on a condition variable.
//
// Every thread has a run of consecutive pieces of its own, so that what it reads from memory is one
// stream; when that is done it takes pieces of others.
//
// A job is over when its pieces are done, not when every worker has looked at it: the caller takes
// pieces like anyone else, so that a worker whose core is busy with another process costs its share
// of the work and no more. A late worker must not touch a job that is over: a piece is claimed by
// compare-and-swap on job number and piece index together, and a claimed piece keeps its job alive.
#include "base/parallel.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

#include "base/affinity.h"
#include "base/check.h"
#include "base/checked.h"

namespace quern {
namespace {

thread_local bool inside_parallel_for = false;

constexpr int kSpins = 4000;  // about 40 microseconds of pause instructions

class Pool {
 public:
  ~Pool() { stop(); }

  int size() {
    if (n_threads_ == 0) resize(0);
    return n_threads_;
  }

  void resize(int n_threads) {
    stop();
    if (n_threads <= 0) n_threads = static_cast<int>(std::thread::hardware_concurrency());
    n_threads_ = std::max(1, n_threads);
    job_.n_threads = 0;  // what new workers may still see of it has no pieces
    next_ = std::vector<Next>(static_cast<size_t>(n_threads_));
    for (int i = 1; i < n_threads_; ++i) workers_.emplace_back([this, i] { work(i); });
    if (is_pinned_ && !bind()) is_pinned_ = false;
  }

  Status pin(bool is_pinned) {
    is_pinned_ = false;
    resize(n_threads_);
    if (!is_pinned) return {};
    QUERN_TRY(bind());
    is_pinned_ = true;
    return {};
  }

  void run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    const std::lock_guard<std::mutex> one_job(run_mutex_);
    Job job;
    bool is_any_asleep;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job = {static_cast<uint32_t>(job_.number + 1), n, grain, n_threads_, &body};
      job_ = job;
      n_done_.store(0, std::memory_order_relaxed);
      for (int t = 0; t < n_threads_; ++t) {
        const auto first = static_cast<uint64_t>(job.first_piece(t));
        next_[static_cast<size_t>(t)].value.store(uint64_t{job.number} << 32 | first,
                                                  std::memory_order_release);
      }
      number_.store(job.number, std::memory_order_release);
      is_any_asleep = n_asleep_ > 0;
    }
    if (is_any_asleep) wake_.notify_all();
    take_pieces(job, 0);
    const int64_t n_pieces = job.n_pieces();
    for (int spin = 0; n_done_.load(std::memory_order_acquire) != n_pieces; ++spin) {
      if (spin < kSpins) {
        _mm_pause();
        continue;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [&] { return n_done_.load(std::memory_order_acquire) == n_pieces; });
    }
  }

 private:
  struct Job {
    uint32_t number = 0;
    int64_t n = 0, grain = 1;
    int n_threads = 1;
    const std::function<void(int64_t, int64_t)>* body = nullptr;
    int64_t n_pieces() const { return ceil_div(n, grain); }
    // The first of the pieces that belong to a thread; those of the last one end at n_pieces().
    int64_t first_piece(int thread) const { return n_pieces() * thread / n_threads; }
  };

  // On a line of its own.
  struct alignas(64) Next {
    std::atomic<uint64_t> value{0};  // job number << 32 | next piece
  };

  // The index of a piece of this job, of those of a thread, that is now ours, or -1.
  int64_t claim(const Job& job, int thread) {
    std::atomic<uint64_t>& at = next_[static_cast<size_t>(thread)].value;
    uint64_t next = at.load(std::memory_order_acquire);
    for (;;) {
      const auto piece = static_cast<int64_t>(next & 0xffffffffu);
      if (next >> 32 != job.number || piece >= job.first_piece(thread + 1)) return -1;
      if (at.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel)) return piece;
    }
  }

  void take_pieces(const Job& job, int self) {
    inside_parallel_for = true;
    for (int i = 0; i < job.n_threads; ++i) {
      const int thread = (self + i) % job.n_threads;
      for (int64_t piece = claim(job, thread); piece >= 0; piece = claim(job, thread)) {
        const int64_t begin = piece * job.grain;
        (*job.body)(begin, std::min(job.n, begin + job.grain));
        if (n_done_.fetch_add(1, std::memory_order_acq_rel) + 1 == job.n_pieces()) {
          const std::lock_guard<std::mutex> lock(mutex_);
          done_.notify_all();
        }
      }
    }
    inside_parallel_for = false;
  }

  void work(int self) {
    uint32_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins; ++spin) {
        if (number_.load(std::memory_order_acquire) != seen) break;
        _mm_pause();
      }
      Job job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ++n_asleep_;
        wake_.wait(lock, [&] { return job_.number != seen || is_stopping_; });
        --n_asleep_;
        if (is_stopping_) return;
        job = job_;
        seen = job.number;
      }
      take_pieces(job, self);
    }
  }

  // All threads, the caller's the first of them.
  Status bind() {
    QUERN_ASSIGN(free_cpus_, usable_cpus());
    caller_ = pthread_self();
    for (int i = 0; i < n_threads_; ++i) {
      const size_t place = static_cast<size_t>(i);
      const pthread_t thread = i == 0 ? caller_ : workers_[place - 1].native_handle();
      QUERN_TRY(bind_thread(thread, {&free_cpus_[place % free_cpus_.size()], 1}));
    }
    return {};
  }

  // The caller's thread, which outlives the pool, as it was.
  void unbind() {
    if (!free_cpus_.empty() && pthread_equal(caller_, pthread_self()) != 0) {
      std::ignore = bind_thread(caller_, free_cpus_);
    }
    free_cpus_.clear();
  }

  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    unbind();
    is_stopping_ = false;
  }

  std::mutex run_mutex_;  // one job at a time
  std::mutex mutex_;      // guards what follows, but for the atomics
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job job_;
  int n_asleep_ = 0;
  bool is_stopping_ = false;
  std::vector<Next> next_;           // of each thread
  std::atomic<uint32_t> number_{0};  // of job_
  std::atomic<int64_t> n_done_{0};
  int n_threads_ = 0;
  bool is_pinned_ = false;
  std::vector<int> free_cpus_;  // of the caller before it was bound
  pthread_t caller_{};
};

Pool& pool() {
  static Pool instance;
  return instance;
}

}  // namespace

void set_thread_count(int n_threads) { pool().resize(n_threads); }

int thread_count() { return pool().size(); }

Status pin_threads(bool is_pinned) { return pool().pin(is_pinned); }

void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  QUERN_CHECK(grain > 0 && n / grain < (int64_t{1} << 31));
  if (n <= 0) return;
  if (inside_parallel_for || n <= grain || pool().size() == 1) {
    for (int64_t begin = 0; begin < n; begin += grain) body(begin, std::min(n, begin + grain));
    return;
  }
  pool().run(n, grain, body);
}

}  // namespace quern
