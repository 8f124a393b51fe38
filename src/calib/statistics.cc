// SPDX-License-Identifier: Apache-2.0
#include "calib/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "linalg/cholesky.h"

namespace quern {
namespace {

constexpr std::array kOrder = {Site::kAttnIn, Site::kHeads, Site::kMlpIn, Site::kFfn};

int place_of(Site site) {
  return static_cast<int>(std::find(kOrder.begin(), kOrder.end(), site) - kOrder.begin());
}

std::optional<Site> site_of(Role shown) {
  switch (shown) {
    case Role::kQ:
      return Site::kAttnIn;
    case Role::kO:
      return Site::kHeads;
    case Role::kGate:
      return Site::kMlpIn;
    case Role::kDown:
      return Site::kFfn;
    default:
      return std::nullopt;
  }
}

}  // namespace

StatisticsTap::StatisticsTap(std::span<const StatisticsNeed> needs, int64_t n_tokens)
    : n_tokens_(n_tokens) {
  for (const StatisticsNeed& need : needs) {
    entries_[need.site].need = need;
    if (place_of(need.site) > place_of(last_)) last_ = need.site;
  }
}

bool StatisticsTap::input(Role role, int expert, MatrixView<const float> x) {
  const std::optional<Site> site = site_of(role);
  if (!site) return true;
  if (const auto entry = entries_.find(*site); entry != entries_.end()) add(entry->second, x);
  // More experts may come.
  return expert >= 0 || place_of(*site) < place_of(last_);
}

void StatisticsTap::add(Entry& entry, MatrixView<const float> x) {
  SiteStatistics& sums = entry.sums;
  const auto n = static_cast<size_t>(x.cols);
  if (sums.n_rows == 0) {
    sums.abs_max.assign(n, 0);
    sums.mean_abs.assign(n, 0);
    sums.mean_square.assign(n, 0);
    if (entry.need.second_moment) sums.second_moment = Matrix<double>(x.cols, x.cols);
    if (entry.need.max_rows > 0) {
      sums.rows = Matrix<float>(std::min(entry.need.max_rows, n_tokens_), x.cols);
    }
  }
  for (int64_t i = 0; i < x.rows; ++i) {
    for (size_t j = 0; j < n; ++j) {
      const float magnitude = std::abs(x.row(i)[j]);
      sums.abs_max[j] = std::max(sums.abs_max[j], magnitude);
      sums.mean_abs[j] += magnitude;
      sums.mean_square[j] += static_cast<double>(magnitude) * magnitude;
    }
    // Row r of all is kept where r * n_wanted passes a multiple of the number of tokens.
    const int64_t wanted = sums.rows.rows(), row = sums.n_rows + i;
    if (entry.n_kept < wanted && row * wanted >= entry.n_kept * n_tokens_) {
      std::copy_n(x.row(i), n, sums.rows.row(entry.n_kept++));
    }
  }
  if (entry.need.second_moment) accumulate_gram(x, sums.second_moment.view());
  sums.n_rows += x.rows;
}

std::map<Site, SiteStatistics> StatisticsTap::take() {
  std::map<Site, SiteStatistics> result;
  for (auto& [site, entry] : entries_) {
    SiteStatistics& sums = entry.sums;
    if (sums.n_rows == 0) continue;
    const double share = 1.0 / static_cast<double>(sums.n_rows);
    for (double& value : sums.mean_abs) value *= share;
    for (double& value : sums.mean_square) value *= share;
    if (entry.need.second_moment) {
      mirror_upper(sums.second_moment.view());
      for (int64_t i = 0; i < sums.second_moment.rows() * sums.second_moment.cols(); ++i) {
        sums.second_moment.data()[i] *= share;
      }
    }
    if (entry.n_kept < sums.rows.rows()) {
      Matrix<float> kept(entry.n_kept, sums.rows.cols());
      std::copy_n(sums.rows.data(), kept.rows() * kept.cols(), kept.data());
      sums.rows = std::move(kept);
    }
    result.emplace(site, std::move(sums));
  }
  entries_.clear();
  return result;
}

}  // namespace quern
