// SPDX-License-Identifier: Apache-2.0
// sort: channels of the FFN in falling order of what flows through them, so that a group of columns
// of down, which shares a scale or is rotated together, holds channels of like size. The reordering
// folds into the rows of gate and up and the columns of down: nothing runs online, and the network
// is the same. Experts share one order, since a site has one operator in a layer.
#include <algorithm>
#include <numeric>

#include "transforms/transform.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"by", ParamKind::kChoice, "energy", 0, 0, "energy|max", "mean square or largest magnitude"},
};

class Sort final : public Transform {
 public:
  explicit Sort(const spec::Params& params)
      : spec_(print(params.canonical())), is_by_max_(params.word("by") == "max") {}

  std::string spec() const override { return spec_; }
  bool is_fitted() const override { return true; }

  Status plan(const ModelDesc&, uint64_t, BasisChange& basis,
              std::vector<std::string>&) const override {
    basis.expect(Site::kFfn);
    return {};
  }

  std::vector<StatisticsNeed> needs(const ModelDesc&, int) const override {
    return {{.site = Site::kFfn}};
  }

  Status fit(const LayerView& view, uint64_t, BasisChange& basis,
             std::vector<std::string>&) const override {
    const SiteStatistics* statistics = view.statistics(Site::kFfn);
    if (statistics == nullptr) return {};
    const std::vector<double> size =
        is_by_max_ ? std::vector<double>(statistics->abs_max.begin(), statistics->abs_max.end())
                   : statistics->mean_square;
    std::vector<int32_t> order(size.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return size[static_cast<size_t>(a)] > size[static_cast<size_t>(b)];
    });
    QUERN_ASSIGN(OperatorPtr op, make_permutation(std::move(order)));
    basis.add(Site::kFfn, view.layer(), std::move(op));
    return {};
  }

 private:
  std::string spec_;
  bool is_by_max_;
};

}  // namespace

extern const TransformInfo sort_transform_info;
const TransformInfo sort_transform_info = {
    .name = "sort",
    .params = kParams,
    .summary = "FFN channels in the order of what flows through them, at no cost",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Transform>> {
      return std::make_unique<Sort>(params);
    },
};

}  // namespace quern
