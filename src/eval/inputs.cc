// SPDX-License-Identifier: Apache-2.0
#include "eval/inputs.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/parallel.h"

namespace quern {
namespace {

// Of one row.
struct RowSums {
  double squares = 0, peak = 0;  // peak: max|x| / rms; 0 for a row of zeros
  std::vector<double> zeros, errors;
};

RowSums sums_of(const float* x, int64_t n, const InputOptions& options) {
  RowSums sums;
  float largest = 0;
  for (int64_t j = 0; j < n; ++j) {
    sums.squares += static_cast<double>(x[j]) * x[j];
    largest = std::max(largest, std::abs(x[j]));
  }
  if (sums.squares > 0) sums.peak = largest / std::sqrt(sums.squares / static_cast<double>(n));
  std::vector<float> rounded(static_cast<size_t>(n));
  for (const auto& act : options.acts) {
    act->values(x, n, {}, rounded.data());
    double zeros = 0, error = 0;
    for (int64_t j = 0; j < n; ++j) {
      const double difference = static_cast<double>(x[j]) - rounded[static_cast<size_t>(j)];
      zeros += rounded[static_cast<size_t>(j)] == 0 ? 1 : 0;
      error += difference * difference;
    }
    sums.zeros.push_back(zeros);
    sums.errors.push_back(error);
  }
  return sums;
}

// Sums of one group of a layer.
struct Group {
  int64_t n_rows = 0;
  double squares = 0, peaks = 0;
  std::vector<float> abs_max;  // [n_in]
  std::vector<double> zeros, errors;
};

class Gather final : public LayerTap {
 public:
  explicit Gather(const InputOptions& options) : options_(options) {}

  bool input(Role role, int /*expert*/, MatrixView<const float> x) override {
    if (x.rows == 0) return true;
    auto found = std::find_if(groups_.begin(), groups_.end(),
                              [&](const auto& group) { return group.first == role; });
    if (found == groups_.end()) found = groups_.insert(groups_.end(), {role, Group()});
    add(x, found->second);
    return true;
  }

  void finish(int layer, std::vector<InputStatistics>& out) const {
    for (const auto& [role, group] : groups_) {
      InputStatistics s;
      s.layer = layer;
      s.role = role;
      s.n_rows = group.n_rows;
      s.n_in = static_cast<int64_t>(group.abs_max.size());
      const double n_values = static_cast<double>(s.n_rows) * static_cast<double>(s.n_in);
      s.rms = std::sqrt(group.squares / n_values);
      s.token_peak = group.peaks / static_cast<double>(s.n_rows);
      std::vector<float> sorted = group.abs_max;
      std::sort(sorted.begin(), sorted.end());
      s.max_abs = sorted.back();
      const double median = sorted[sorted.size() / 2];
      s.channel_peak = median > 0 ? s.max_abs / median : 0;
      for (size_t a = 0; a < options_.acts.size(); ++a) {
        const double error = group.squares > 0 ? group.errors[a] / group.squares : 0;
        s.losses.push_back({group.zeros[a] / n_values, error});
      }
      out.push_back(std::move(s));
    }
  }

 private:
  void add(MatrixView<const float> x, Group& group) const {
    group.abs_max.resize(static_cast<size_t>(x.cols));
    group.zeros.resize(options_.acts.size());
    group.errors.resize(options_.acts.size());
    std::vector<RowSums> rows(static_cast<size_t>(x.rows));
    parallel_for(x.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        rows[static_cast<size_t>(i)] = sums_of(x.row(i), x.cols, options_);
      }
    });
    for (const RowSums& row : rows) {  // in order: no dependence on threads
      group.squares += row.squares;
      group.peaks += row.peak;
      for (size_t a = 0; a < options_.acts.size(); ++a) {
        group.zeros[a] += row.zeros[a];
        group.errors[a] += row.errors[a];
      }
    }
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.cols; ++j) {
        float& most = group.abs_max[static_cast<size_t>(j)];
        most = std::max(most, std::abs(x(i, j)));
      }
    }
    group.n_rows += x.rows;
  }

  const InputOptions& options_;
  std::vector<std::pair<Role, Group>> groups_;  // in the order of the data
};

}  // namespace

std::string_view input_name(Role role) {
  switch (role) {
    case Role::kQ:
      return site_name(Site::kAttnIn);
    case Role::kO:
      return site_name(Site::kHeads);
    case Role::kGate:
      return site_name(Site::kMlpIn);
    case Role::kDown:
      return site_name(Site::kFfn);
    default:
      return role_name(role);
  }
}

Result<std::vector<InputStatistics>> measure_inputs(const Model& model,
                                                    std::span<const std::vector<Token>> windows,
                                                    const InputOptions& options) {
  for (const auto& act : options.acts) {
    if (act->n_ranges(1) > 0) {
      return usage_error("{} has a static scale, and nothing was calibrated", act->spec());
    }
  }
  std::vector<Gather> layers(model.desc().layers.size(), Gather(options));
  for (size_t i = 0; i < windows.size(); ++i) {
    if (!options.proceed(static_cast<double>(i) / static_cast<double>(windows.size()))) {
      return cancelled();
    }
    const auto n = static_cast<int64_t>(windows[i].size());
    QUERN_ASSIGN(KvCache cache, model.make_cache(n));
    Matrix<float> hidden(n, model.desc().d_model);
    QUERN_TRY(model.forward(cache, windows[i], hidden.view(),
                            [&](int layer) { return &layers[static_cast<size_t>(layer)]; }));
  }
  std::vector<InputStatistics> all;
  for (size_t i = 0; i < layers.size(); ++i) layers[i].finish(static_cast<int>(i), all);
  return all;
}

}  // namespace quern
