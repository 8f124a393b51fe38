// SPDX-License-Identifier: Apache-2.0
#include "model/rope.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "model/forward.h"

namespace quern {
namespace {

constexpr int64_t kGrain = 32;  // rows of a piece of work

// Rows from `first` on, for the positions of one sequence.
void fill(const RopeDesc& rope, const SequenceRows& sequence, int64_t first, RopeTable& table) {
  const bool is_long = !rope.inv_freq_long.empty() && sequence.context > rope.original_context;
  const std::vector<double>& inv_freq = is_long ? rope.inv_freq_long : rope.inv_freq;
  parallel_for(sequence.n_rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < rope.n_dims / 2; ++j) {
        const double angle =
            static_cast<double>(sequence.position + i) * inv_freq[static_cast<size_t>(j)];
        table.cosine(first + i, j) = static_cast<float>(rope.magnitude * std::cos(angle));
        table.sine(first + i, j) = static_cast<float>(rope.magnitude * std::sin(angle));
      }
    }
  });
}

}  // namespace

const RopeTable& RopeTables::at(const RopeDesc& rope, std::span<const SequenceRows> sequences) {
  const auto is_same = [](const Rows& a, const SequenceRows& b) {
    return a == Rows{b.position, b.n_rows, b.context};
  };
  if (!std::equal(rows_.begin(), rows_.end(), sequences.begin(), sequences.end(), is_same)) {
    tables_.clear();
    rows_.clear();
    for (const SequenceRows& s : sequences) rows_.push_back({s.position, s.n_rows, s.context});
  }
  for (const auto& [desc, table] : tables_) {
    if (desc == rope) return table;
  }
  int64_t n_rows = 0;
  for (const Rows& rows : rows_) n_rows += rows.n_rows;
  const int64_t half = rope.n_dims / 2;
  RopeTable table{Matrix<float>(n_rows, half), Matrix<float>(n_rows, half)};
  int64_t first = 0;
  for (const SequenceRows& sequence : sequences) {
    fill(rope, sequence, first, table);
    first += sequence.n_rows;
  }
  return tables_.emplace_back(rope, std::move(table)).second;
}

}  // namespace quern
