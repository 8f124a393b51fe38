// SPDX-License-Identifier: Apache-2.0
// smooth: divides each channel of what matrices read by s_j and multiplies their columns by it, so
// that outliers are shared between inputs and weights before both are rounded (SmoothQuant, arXiv
// 2211.10438, equation 4):
//
//   s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)
//
// over all calibration tokens, and over all rows of all matrices that read the site: q, k and v;
// gate, up and routers of all experts. weights=none leaves the second factor out: CrossQuant's
// column powers c_j^alpha with static c (arXiv 2410.07505, where this alpha is 1 - its alpha).
//
// A channel that is zero on one side stays as it is. At `heads` the heads that share a KV head get
// one factor, the largest of both sides, so that it folds into v.
#include <algorithm>
#include <cmath>

#include "transforms/readers.h"
#include "transforms/transform.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"alpha", ParamKind::kNumber, "0.5", 0, 1, "", "how much of the outliers goes to the weights"},
    {"sites", ParamKind::kSet, "attn_in+mlp_in", 0, 0, "attn_in|heads|mlp_in|ffn",
     "whose inputs to smooth"},
    {"weights", ParamKind::kChoice, "max", 0, 0, "max|none",
     "divide by the largest weight of a column too, or not"},
};

constexpr Site kPlaces[] = {Site::kAttnIn, Site::kHeads, Site::kMlpIn, Site::kFfn};
constexpr double kLeast = 1e-5;  // of a factor

class Smooth final : public Transform {
 public:
  explicit Smooth(const spec::Params& params)
      : spec_(print(params.canonical())),
        alpha_(params.number("alpha")),
        with_weights_(params.word("weights") == "max"),
        params_(params) {}

  std::string spec() const override { return spec_; }
  bool is_fitted() const override { return true; }

  Status plan(const ModelDesc&, uint64_t, BasisChange& basis,
              std::vector<std::string>&) const override {
    for (const Site site : sites()) basis.expect(site);
    return {};
  }

  std::vector<StatisticsNeed> needs(const ModelDesc&, int) const override {
    std::vector<StatisticsNeed> needs;
    for (const Site site : sites()) needs.push_back({.site = site});
    return needs;
  }

  Status fit(const LayerView& view, uint64_t, BasisChange& basis,
             std::vector<std::string>&) const override {
    const LayerDesc& layer = view.model().layers[static_cast<size_t>(view.layer())];
    for (const Site site : sites()) {
      const SiteStatistics* statistics = view.statistics(site);
      if (statistics == nullptr) continue;  // no token came here
      std::vector<float> inputs = statistics->abs_max, weights(inputs.size(), 1.0f);
      if (with_weights_) {
        QUERN_ASSIGN(weights, largest_weights(view, layer, site, inputs.size()));
      }
      if (site == Site::kHeads) {
        share_in_kv_groups(layer.attention, inputs);
        share_in_kv_groups(layer.attention, weights);
      }
      QUERN_ASSIGN(OperatorPtr op, make_diagonal(scales(inputs, weights)));
      basis.add(site, view.layer(), std::move(op));
    }
    return {};
  }

 private:
  std::vector<Site> sites() const {
    std::vector<Site> chosen;
    for (const Site site : kPlaces) {
      if (params_.has("sites", site_name(site))) chosen.push_back(site);
    }
    return chosen;
  }

  // max|W_j| of every column that a channel of the site meets.
  static Result<std::vector<float>> largest_weights(const LayerView& view, const LayerDesc& layer,
                                                    Site site, size_t n) {
    std::vector<float> largest(n, 0.0f);
    for (const Reader& reader : readers(layer, site)) {
      QUERN_ASSIGN(const Matrix<float> w, view.weight(reader.role, reader.expert));
      for (int64_t i = 0; i < w.rows(); ++i) {
        for (size_t j = 0; j < n; ++j) {
          largest[j] = std::max(largest[j], std::abs(w(i, static_cast<int64_t>(j))));
        }
      }
    }
    return largest;
  }

  // 1 / s
  std::vector<float> scales(const std::vector<float>& inputs,
                            const std::vector<float>& weights) const {
    std::vector<float> result(inputs.size(), 1.0f);
    for (size_t j = 0; j < inputs.size(); ++j) {
      if (inputs[j] == 0 || weights[j] == 0) continue;
      const double s = std::pow(static_cast<double>(inputs[j]), alpha_) /
                       std::pow(static_cast<double>(weights[j]), 1 - alpha_);
      if (std::isfinite(s)) result[j] = static_cast<float>(1 / std::max(s, kLeast));
    }
    return result;
  }

  std::string spec_;
  double alpha_;
  bool with_weights_;
  spec::Params params_;
};

}  // namespace

extern const TransformInfo smooth_transform_info;
const TransformInfo smooth_transform_info = {
    .name = "smooth",
    .params = kParams,
    .summary = "shares outliers between inputs and weights (SmoothQuant, CrossQuant)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Transform>> {
      return std::make_unique<Smooth>(params);
    },
};

}  // namespace quern
