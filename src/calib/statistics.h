// SPDX-License-Identifier: Apache-2.0
// What fitted transforms know of a layer: statistics of the values at its sites.
#pragma once

#include <map>
#include <span>

#include "model/forward.h"
#include "transforms/transform.h"

namespace quern {

// Gathers, behind the online operators, what the needs ask for while `n_tokens` tokens pass a
// layer. Rows are counted once for each expert that reads them.
class StatisticsTap final : public LayerTap {
 public:
  StatisticsTap(std::span<const StatisticsNeed> needs, int64_t n_tokens);
  bool input(Role role, int expert, MatrixView<const float> x) override;
  // Ends gathering: means instead of sums. Sites that no row reached are left out.
  std::map<Site, SiteStatistics> take();

 private:
  struct Entry {
    StatisticsNeed need;
    SiteStatistics sums;
    int64_t n_kept = 0;
  };
  void add(Entry& entry, MatrixView<const float> x);

  std::map<Site, Entry> entries_;
  int64_t n_tokens_;
  Site last_ = Site::kAttnIn;  // the last that is needed, in the order of the data
};

}  // namespace quern
