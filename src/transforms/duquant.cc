// SPDX-License-Identifier: Apache-2.0
// duquant: two rotations of blocks of channels and a permutation between them, at each site that
// matrices read (DuQuant, arXiv 2406.01721):
//
//   x  ->  x R1 P R2      R1, R2 block diagonal, one [block, block] matrix for all blocks of a site
//
// R1 is found by a greedy search that puts the largest value of the calibration rows in front of a
// flat direction, step after step (transforms/duquant_rotation.h); P shares the channels that are
// still large out among the blocks; R2 is a second search behind it. All run online. The paper's
// smoothing is the stage before: smooth(alpha=0.6, sites=...) | duquant.
#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

#include "base/float_types.h"
#include "transforms/duquant_rotation.h"
#include "transforms/transform.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"block", ParamKind::kInt, "128", 8, 1024, "", "channels that are rotated together"},
    {"steps", ParamKind::kInt, "256", 0, 4096, "", "of a greedy search"},
    {"permutations", ParamKind::kInt, "1", 0, 2, "", "each followed by one more rotation"},
    {"random", ParamKind::kChoice, "right", 0, 0, "right|left",
     "side of the random part: right as published, left keeps the row of the outlier flat"},
    {"peak", ParamKind::kChoice, "absmax", 0, 0, "absmax|range",
     "what a search lowers: the largest magnitude, or largest less smallest"},
    {"rows", ParamKind::kInt, "1024", 1, 1 << 20, "", "of calibration that a search looks at"},
    {"sites", ParamKind::kSet, "attn_in+heads+mlp_in+ffn", 0, 0, "attn_in|heads|mlp_in|ffn",
     "whose inputs to rotate"},
};

constexpr Site kPlaces[] = {Site::kAttnIn, Site::kHeads, Site::kMlpIn, Site::kFfn};
constexpr int64_t kSmallestBlock = 8;  // below this a rotation spreads nothing
constexpr uint64_t kFirstStream = 1000;
constexpr uint64_t kStreams = 4;  // of a site in a layer

int64_t width_of(const ModelDesc& model, const LayerDesc& layer, Site site) {
  if (site == Site::kHeads) return layer.attention.n_heads * layer.attention.d_head;
  return site == Site::kFfn ? layer.mlp.d_ffn : model.d_model;
}

// rows <- rows R in blocks.
void rotate(Matrix<float>& rows, const Matrix<double>& r) {
  const int64_t n = r.rows();
  std::vector<double> z(static_cast<size_t>(n));
  for (int64_t i = 0; i < rows.rows(); ++i) {
    for (float* block = rows.row(i); block < rows.row(i) + rows.cols(); block += n) {
      std::fill(z.begin(), z.end(), 0.0);
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t c = 0; c < n; ++c) z[static_cast<size_t>(c)] += block[j] * r(j, c);
      }
      std::transform(z.begin(), z.end(), block, [](double v) { return static_cast<float>(v); });
    }
  }
}

void permute(Matrix<float>& rows, const std::vector<int32_t>& perm) {
  std::vector<float> row(perm.size());
  for (int64_t i = 0; i < rows.rows(); ++i) {
    std::transform(perm.begin(), perm.end(), row.begin(), [&](int32_t j) { return rows(i, j); });
    std::copy(row.begin(), row.end(), rows.row(i));
  }
}

std::vector<float> abs_max(const Matrix<float>& rows) {
  std::vector<float> most(static_cast<size_t>(rows.cols()), 0.0f);
  for (int64_t i = 0; i < rows.rows(); ++i) {
    for (size_t j = 0; j < most.size(); ++j) {
      most[j] = std::max(most[j], std::abs(rows(i, static_cast<int64_t>(j))));
    }
  }
  return most;
}

double as_half(double value) {
  return static_cast<double>(f16_to_float(float_to_f16(static_cast<float>(value))));
}

class Duquant final : public Transform {
 public:
  explicit Duquant(const spec::Params& params)
      : spec_(print(params.canonical())),
        block_(params.integer("block")),
        permutations_(static_cast<int>(params.integer("permutations"))),
        max_rows_(params.integer("rows")),
        params_(params) {
    search_.steps = static_cast<int>(params.integer("steps"));
    search_.peak = params.word("peak") == "range" ? Peak::kRange : Peak::kAbsMax;
    search_.side = params.word("random") == "left" ? RandomSide::kLeft : RandomSide::kRight;
  }

  std::string spec() const override { return spec_; }
  bool is_fitted() const override { return true; }

  Status plan(const ModelDesc& model, uint64_t, BasisChange& basis,
              std::vector<std::string>& notes) const override {
    int done = 0;
    for (const Site site : kPlaces) {
      if (!params_.has("sites", site_name(site))) continue;
      // By width, for layers may differ: what is done instead of what was asked for.
      std::map<int64_t, int> widths;
      for (const LayerDesc& layer : model.layers) ++widths[width_of(model, layer, site)];
      bool is_done = false;
      for (const auto& [width, n_layers] : widths) {
        const int64_t block = block_of(width);
        const bool is_left = block < kSmallestBlock;
        is_done = is_done || !is_left;
        if (block == block_) continue;
        notes.push_back(fmt::format(
            "duquant: site {} of {} layers: {} does not divide {} channels; {}", site_name(site),
            n_layers, block_, width,
            is_left ? "left as it is" : fmt::format("rotated in blocks of {} instead", block)));
      }
      if (!is_done) continue;
      basis.expect(site);
      ++done;
    }
    if (done == 0) {
      return error("duquant: no site can be rotated: {}", notes.empty() ? "" : notes.back());
    }
    return {};
  }

  std::vector<StatisticsNeed> needs(const ModelDesc& model, int layer) const override {
    std::vector<StatisticsNeed> needs;
    for (const Site site : sites(model, layer)) {
      needs.push_back({.site = site, .max_rows = max_rows_});
    }
    return needs;
  }

  Status fit(const LayerView& view, uint64_t seed, BasisChange& basis,
             std::vector<std::string>&) const override {
    for (const Site site : sites(view.model(), view.layer())) {
      const SiteStatistics* statistics = view.statistics(site);
      if (statistics == nullptr) continue;  // no token came here
      const auto place = static_cast<uint64_t>(view.layer()) * kSites + static_cast<uint64_t>(site);
      QUERN_TRY(fit_site(statistics->rows, site, view.layer(), seed,
                         kFirstStream + kStreams * place, basis));
    }
    return {};
  }

 private:
  // The block asked for, or the largest power of two in its place.
  int64_t block_of(int64_t width) const {
    if (width % block_ == 0) return block_;
    const auto most = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(block_)));
    return std::min(most, width & -width);
  }

  std::vector<Site> sites(const ModelDesc& model, int index) const {
    const LayerDesc& layer = model.layers[static_cast<size_t>(index)];
    std::vector<Site> chosen;
    for (const Site site : kPlaces) {
      if (params_.has("sites", site_name(site)) &&
          block_of(width_of(model, layer, site)) >= kSmallestBlock) {
        chosen.push_back(site);
      }
    }
    return chosen;
  }

  Status fit_site(Matrix<float> rows, Site site, int layer, uint64_t seed, uint64_t stream,
                  BasisChange& basis) const {
    GreedyOptions search = search_;
    search.block = block_of(rows.cols());
    for (int round = 0; round <= permutations_; ++round) {
      if (round > 0) {
        std::vector<int32_t> perm = zigzag(abs_max(rows), search.block);
        permute(rows, perm);
        QUERN_ASSIGN(OperatorPtr op, make_permutation(std::move(perm)));
        basis.add(site, layer, std::move(op));
      }
      Random random(seed, stream + static_cast<uint64_t>(round));
      const GreedyRotation found = greedy_rotation(rows.view(), search, random);
      if (found.steps == 0) continue;
      rotate(rows, found.rotation);
      QUERN_ASSIGN(OperatorPtr op, operator_of(found.rotation));
      basis.add(site, layer, std::move(op));
    }
    return {};
  }

  // x R as x M^T, in halves, as which files keep it. Weights get the inverse of what was rounded.
  static Result<OperatorPtr> operator_of(const Matrix<double>& r) {
    Matrix<double> m(r.rows(), r.rows());
    for (int64_t i = 0; i < r.rows(); ++i) {
      for (int64_t j = 0; j < r.rows(); ++j) m(i, j) = as_half(r(j, i));
    }
    return make_dense(m.view());
  }

  std::string spec_;
  int64_t block_;
  int permutations_;
  int64_t max_rows_;
  GreedyOptions search_;
  spec::Params params_;
};

}  // namespace

extern const TransformInfo duquant_transform_info;
const TransformInfo duquant_transform_info = {
    .name = "duquant",
    .params = kParams,
    .summary = "block rotations aimed at outliers, with a permutation between (DuQuant)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Transform>> {
      return std::make_unique<Duquant>(params);
    },
};

}  // namespace quern
