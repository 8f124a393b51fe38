// SPDX-License-Identifier: Apache-2.0
// slice: SliceGPT (arXiv 2401.15024). At every place between attention and MLP the stream is turned
// into the basis of its principal components, and the least of them are cut off; all matrices that
// read or write it become smaller dense ones. Places have different bases Q, so the stream past
// attention and MLP is multiplied by Q_to^T Q_from, two small matrices a layer.
//
// A place is fitted behind the places before it, which are cut already. Head and final norm stay in
// the original basis: the last layer gives all directions back. Below about 12 % the added matrices
// weigh more than what is saved; the report says how many parameters are left.
#include <algorithm>

#include "base/random.h"
#include "linalg/decompose.h"
#include "transforms/transform.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"fraction", ParamKind::kNumber, "0.25", 0, 0.95, "", "of the stream's directions to cut"},
    {"final", ParamKind::kChoice, "random", 0, 0, "random|pca",
     "turn within what is kept, which spreads it evenly, or leave it ordered"},
    {"multiple", ParamKind::kInt, "8", 1, 1024, "", "the kept width is a multiple of this"},
    {"megabytes", ParamKind::kNumber, "0", 0, 1e9, "",
     "cut until the weights at 16 bits take so much; 0: by fraction"},
    {"directions", ParamKind::kChoice, "pca", 0, 0, "pca|random",
     "keep principal components or, to compare, a random subspace"},
};

// Entries of all matrices with a stream of width d; of the original for d = 0.
double count_weights(const ModelDesc& model, int64_t d) {
  const auto full = static_cast<double>(model.d_model);
  const double width = d > 0 ? static_cast<double>(d) : full;
  const auto vocab = static_cast<double>(model.n_vocab);
  const bool is_tied = model.tied_head && d == 0;
  double total =
      vocab * width + (is_tied ? 0 : vocab * full) + static_cast<double>(model.n_positions) * width;
  for (const LayerDesc& layer : model.layers) {
    const AttentionDesc& a = layer.attention;
    const MlpDesc& m = layer.mlp;
    const double out = &layer == &model.layers.back() ? full : width;
    const auto heads = static_cast<double>(a.n_heads * a.d_head);
    const auto kv_heads = static_cast<double>(a.n_kv_heads * a.d_head);
    const auto ffn =
        static_cast<double>(m.d_ffn * std::max<int64_t>(1, m.n_experts) + m.d_ffn_shared);
    total += width * (heads + 2 * kv_heads) + heads * (layer.parallel ? out : width);
    total += ffn * ((m.gated ? 2 : 1) * width + out);
    total += width * static_cast<double>(m.n_experts + (m.shared_router ? 1 : 0));
    if (d > 0) total += out * width + (layer.parallel ? 0 : width * width);
  }
  return total;
}

class Slice final : public Transform {
 public:
  explicit Slice(const spec::Params& params)
      : spec_(print(params.canonical())),
        fraction_(params.number("fraction")),
        megabytes_(params.number("megabytes")),
        multiple_(params.integer("multiple")),
        is_turned_(params.word("final") == "random"),
        is_random_(params.word("directions") == "random") {}

  std::string spec() const override { return spec_; }
  bool is_fitted() const override { return true; }
  bool slices() const override { return true; }

  Status plan(const ModelDesc& model, uint64_t, BasisChange& basis,
              std::vector<std::string>& notes) const override {
    if (!basis.empty(Site::kResidual) || basis.is_sliced()) {
      return usage_error(
          "slice: the stream has another basis already; slice comes first, and once");
    }
    StreamForm& form = basis.form();
    for (const LayerDesc& layer : model.layers) {
      for (const NormDesc& norm : {layer.attn_norm, layer.mlp_norm}) {
        form.is_centred = form.is_centred || norm.kind == NormKind::kLayer;
      }
      if (layer.attn_post_norm.kind != NormKind::kNone ||
          layer.mlp_post_norm.kind != NormKind::kNone) {
        return error(
            "slice: a norm after attention or MLP stands between the writer and the stream");
      }
    }
    QUERN_ASSIGN(const int64_t width, kept_width(model));
    form.ends = Ends::kFolded;
    form.widths.assign(2 * model.layers.size() + 1, width);
    form.widths.back() = model.d_model;
    const double ratio = count_weights(model, width) / count_weights(model, 0);
    notes.push_back(fmt::format("slice: {} of {} directions, {:.1f} % of the parameters{}", width,
                                model.d_model, 100 * ratio,
                                ratio < 1 ? ""
                                          : ": the model grows, since the matrices past attention "
                                            "and MLP weigh more than what is cut"));
    return {};
  }

  Status fit(const LayerView& view, uint64_t seed, BasisChange& basis,
             std::vector<std::string>&) const override {
    const auto n_layers = static_cast<int>(view.model().layers.size());
    if (view.layer() < 0) return fit_place(view, place_in(0), seed, basis);
    if (!view.model().layers[static_cast<size_t>(view.layer())].parallel) {
      QUERN_TRY(fit_place(view, place_mid(view.layer()), seed, basis));
    }
    if (view.layer() == n_layers - 1) return {};  // what the head reads
    return fit_place(view, place_out(view.layer()), seed, basis);
  }

 private:
  Result<int64_t> kept_width(const ModelDesc& model) const {
    const int64_t d = model.d_model;
    const auto rounded = [&](double width) {
      return static_cast<int64_t>(width) / multiple_ * multiple_;
    };
    if (megabytes_ == 0) {
      // d itself need not be a multiple.
      const int64_t width =
          fraction_ == 0 ? d : rounded((1 - fraction_) * static_cast<double>(d) + 1e-9);
      if (width < 1) return usage_error("slice: {} of {} directions leave none", fraction_, d);
      return width;
    }
    int64_t width = rounded(static_cast<double>(d));
    while (width > 0 && count_weights(model, width) * 2 > megabytes_ * 1e6) width -= multiple_;
    if (width < 1) {
      return usage_error("slice: {} MB are too few; {} directions take {:.1f} MB", megabytes_,
                         multiple_, count_weights(model, multiple_) * 2e-6);
    }
    return width;
  }

  Status fit_place(const LayerView& view, int place, uint64_t seed, BasisChange& basis) const {
    const int64_t d = view.model().d_model;
    const int64_t width = basis.form().widths[static_cast<size_t>(place)];
    Random random(seed, static_cast<uint64_t>(place) + 1000);
    Matrix<double> all;
    if (is_random_) {
      all = random_orthogonal(d, random);
    } else {
      QUERN_ASSIGN(const Matrix<double> moment, view.stream_moment(place));
      QUERN_ASSIGN(SymmetricEigen eigen, eigen_symmetric(moment.view()));
      all = std::move(eigen.vectors);
    }
    auto q = std::make_shared<Matrix<double>>(d, width);
    for (int64_t i = 0; i < d; ++i) std::copy_n(all.row(i), width, q->row(i));
    if (is_turned_ && !is_random_) {
      const Matrix<double> turn = random_orthogonal(width, random);
      *q = product(std::as_const(*q).view(), turn.view());
    }
    basis.set_slice(place, std::move(q));
    return {};
  }

  std::string spec_;
  double fraction_, megabytes_;
  int64_t multiple_;
  bool is_turned_, is_random_;
};

}  // namespace

extern const TransformInfo slice_transform_info;
const TransformInfo slice_transform_info = {
    .name = "slice",
    .params = kParams,
    .summary = "the stream cut to its principal components, all matrices smaller (SliceGPT)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Transform>> {
      return std::make_unique<Slice>(params);
    },
};

}  // namespace quern
