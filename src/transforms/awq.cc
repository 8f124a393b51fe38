// SPDX-License-Identifier: Apache-2.0
// awq: multiplies the columns of weights that meet large inputs, so that rounding them to groups
// loses less, and divides those inputs (AWQ, arXiv 2306.00978). For each site the exponent r of
//
//   s_j = max(m_j^r, 1e-4),  s <- s / sqrt(max s min s),  m_j = mean |X_j|
//
// is the one of 0, 1/points, ... that gives the least output error when every weight that reads the
// site is rounded to `codec`, without feedback (equation 4 of the paper):
//
//   sum over the weights of |X W^T - (X / s) Q(W s)^T|^2 over sample rows X
//
// r = 0 is rounding as it is, so the best is never worse on the samples. Routers are not rounded
// and have no part in the error. The paper's code compares outputs of whole attention and MLP
// modules instead. At `heads` channels that share a channel of v take the largest m, so that s
// folds; the paper skips such models there.
#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "codecs/measure.h"
#include "kernels/kernels.h"
#include "transforms/readers.h"
#include "transforms/transform.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"codec", ParamKind::kCall, "", 0, 0, "", "what the weights will be rounded to"},
    {"sites", ParamKind::kSet, "attn_in+heads+mlp_in+ffn", 0, 0, "attn_in|heads|mlp_in|ffn",
     "whose weights to scale"},
    {"points", ParamKind::kInt, "20", 1, 1000, "", "exponents to try: 0, 1/points, ... below 1"},
    {"rows", ParamKind::kInt, "512", 1, 1 << 20, "", "sample rows of a site"},
};

constexpr Site kPlaces[] = {Site::kAttnIn, Site::kHeads, Site::kMlpIn, Site::kFfn};
constexpr double kLeast = 1e-4;  // of a factor, before they are centred

int64_t width_of(const ModelDesc& model, const LayerDesc& layer, Site site) {
  if (site == Site::kHeads) return layer.attention.n_heads * layer.attention.d_head;
  return site == Site::kFfn ? layer.mlp.d_ffn : model.d_model;
}

// |X E^T|^2 for E = W - Q(W s) / s; x [n_rows, n_in].
double rounding_error(const Codec& codec, MatrixView<const float> w, const std::vector<float>& s,
                      MatrixView<const float> x, CodedMatrix& codes) {
  Matrix<float> scaled(w.rows, w.cols), error(w.rows, w.cols);
  for (int64_t i = 0; i < w.rows; ++i)
    kernels().multiply(w.row(i), s.data(), w.cols, scaled.row(i));
  code_to_nearest(codec, scaled.view(), codes.mutable_view(), error.view());
  constexpr int64_t kGrain = 16;
  std::vector<double> parts(static_cast<size_t>((w.rows + kGrain - 1) / kGrain));
  parallel_for(w.rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) {
        error(i, j) = w(i, j) - error(i, j) / s[static_cast<size_t>(j)];
      }
    }
    std::vector<float> outputs(static_cast<size_t>((end - begin) * x.rows));
    kernels().dot_tile(error.row(begin), w.cols, end - begin, x.data, x.stride, x.rows, w.cols,
                       outputs.data(), x.rows);
    double sum = 0;
    for (const float value : outputs) sum += static_cast<double>(value) * value;
    parts[static_cast<size_t>(begin / kGrain)] = sum;
  });
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

class Awq final : public Transform {
 public:
  Awq(std::string text, std::unique_ptr<Codec> codec, const spec::Params& params)
      : spec_(std::move(text)),
        codec_(std::move(codec)),
        points_(static_cast<int>(params.integer("points"))),
        max_rows_(params.integer("rows")) {
    for (const Site site : kPlaces) {
      if (params.has("sites", site_name(site))) sites_.push_back(site);
    }
  }

  std::string spec() const override { return spec_; }
  bool is_fitted() const override { return true; }

  Status plan(const ModelDesc& model, uint64_t, BasisChange& basis,
              std::vector<std::string>&) const override {
    for (const Site site : sites_) {
      for (const LayerDesc& layer : model.layers) {
        const auto planes = codec_->planes(1, width_of(model, layer, site));
        if (!planes) return tl::unexpected(in_context(planes.error(), "awq"));
      }
      basis.expect(site);
    }
    return {};
  }

  std::vector<StatisticsNeed> needs(const ModelDesc&, int) const override {
    std::vector<StatisticsNeed> needs;
    for (const Site site : sites_) needs.push_back({.site = site, .max_rows = max_rows_});
    return needs;
  }

  Status fit(const LayerView& view, uint64_t, BasisChange& basis,
             std::vector<std::string>&) const override {
    const LayerDesc& layer = view.model().layers[static_cast<size_t>(view.layer())];
    for (const Site site : sites_) {
      const SiteStatistics* statistics = view.statistics(site);
      if (statistics == nullptr) continue;  // no token came here
      std::vector<double> size = statistics->mean_abs;
      if (site == Site::kHeads) share_in_kv_groups(layer.attention, size);
      QUERN_ASSIGN(const int best, search(view, layer, site, size, statistics->rows.view()));
      if (best == 0) continue;
      std::vector<float> scale = factors(size, best);
      for (float& s : scale) s = 1 / s;
      QUERN_ASSIGN(OperatorPtr op, make_diagonal(std::move(scale)));
      basis.add(site, view.layer(), std::move(op));
    }
    return {};
  }

 private:
  // s for exponent number `step`.
  std::vector<float> factors(const std::vector<double>& size, int step) const {
    const double r = static_cast<double>(step) / points_;
    std::vector<double> s(size.size());
    std::transform(size.begin(), size.end(), s.begin(),
                   [&](double m) { return std::max(std::pow(m, r), kLeast); });
    const auto [least, most] = std::minmax_element(s.begin(), s.end());
    const double centre = std::sqrt(*least * *most);
    std::vector<float> rounded(s.size());
    std::transform(s.begin(), s.end(), rounded.begin(),
                   [&](double value) { return static_cast<float>(value / centre); });
    return rounded;
  }

  // The number of the best exponent.
  Result<int> search(const LayerView& view, const LayerDesc& layer, Site site,
                     const std::vector<double>& size, MatrixView<const float> rows) const {
    std::vector<double> errors(static_cast<size_t>(points_), 0.0);
    for (const Reader& reader : readers(layer, site)) {
      if (reader.role == Role::kRouter || reader.role == Role::kSharedRouter) continue;
      QUERN_ASSIGN(const Matrix<float> w, view.weight(reader.role, reader.expert));
      QUERN_ASSIGN(CodedMatrix codes, CodedMatrix::create(*codec_, w.rows(), w.cols()));
      for (int step = 0; step < points_; ++step) {
        errors[static_cast<size_t>(step)] +=
            rounding_error(*codec_, w.view(), factors(size, step), rows, codes);
      }
    }
    const auto best = std::min_element(errors.begin(), errors.end());
    return std::isfinite(*best) ? static_cast<int>(best - errors.begin()) : 0;
  }

  std::string spec_;
  std::unique_ptr<Codec> codec_;
  std::vector<Site> sites_;
  int points_;
  int64_t max_rows_;
};

}  // namespace

extern const TransformInfo awq_transform_info;
const TransformInfo awq_transform_info = {
    .name = "awq",
    .params = kParams,
    .summary = "scales columns that meet large inputs, by a search (AWQ)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Transform>> {
      QUERN_ASSIGN(auto codec, make_codec(params.call("codec")));
      QUERN_ASSIGN(std::string text, params.text_around(codec->spec()));
      return std::make_unique<Awq>(std::move(text), std::move(codec), params);
    },
};

}  // namespace quern
