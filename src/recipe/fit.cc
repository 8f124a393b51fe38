// SPDX-License-Identifier: Apache-2.0
#include "recipe/fit.h"

#include "calib/statistics.h"
#include "model/fused_source.h"

namespace quern {
namespace {

class FusedLayerView final : public LayerView {
 public:
  FusedLayerView(const ModelDesc& model, int layer, const FusedSource& source,
                 std::map<Site, SiteStatistics> statistics)
      : model_(model), layer_(layer), source_(source), statistics_(std::move(statistics)) {}
  const ModelDesc& model() const override { return model_; }
  int layer() const override { return layer_; }
  const SiteStatistics* statistics(Site site) const override {
    const auto found = statistics_.find(site);
    return found == statistics_.end() ? nullptr : &found->second;
  }
  Result<Matrix<float>> weight(Role role, int expert) const override {
    const WeightId id{role, layer_, expert};
    if (!has_weight(model_, id)) return error("{}: the model has no such weight", to_string(id));
    return source_.weight(id);
  }

 private:
  const ModelDesc& model_;
  int layer_;
  const FusedSource& source_;
  std::map<Site, SiteStatistics> statistics_;
};

}  // namespace

Status Fitting::fit(int layer, const Streams& streams, int64_t n_tokens,
                    const std::function<bool()>& proceed, std::vector<std::string>& notes) {
  const ModelDesc& model = files_.desc();
  for (size_t i = 0; i < recipe_.transforms().size(); ++i) {
    const Transform& transform = *recipe_.transforms()[i];
    if (!transform.is_fitted()) continue;
    const int stage = static_cast<int>(i);
    const BasisChange before = basis_.before_stage(stage);
    const FusedSource source(files_, before);
    const std::vector<StatisticsNeed> needs = transform.needs(model, layer);
    StatisticsTap tap(needs, n_tokens);
    if (!needs.empty()) {
      QUERN_ASSIGN(const LayerWeights weights, source.layer(layer));
      if (!streams.observe_source(layer, weights, tap, proceed)) {
        return tl::unexpected(Error{ErrorKind::kCancelled, "cancelled"});
      }
    }
    basis_.begin_stage(stage, BasisChange::Origin::kFitted);
    const FusedLayerView view(model, layer, source, tap.take());
    if (auto fitted = transform.fit(view, seed_, basis_, notes); !fitted) {
      return tl::unexpected(in_context(fitted.error(), transform.spec()));
    }
  }
  return check_basis(basis_, model);
}

Status Fitting::restore(int layer, const Json& report, const SafetensorsFile& file) {
  QUERN_TRY(
      basis_.add_fitted(layer, report, [&](std::string_view name) { return file.find(name); }));
  return check_basis(basis_, files_.desc());
}

}  // namespace quern
