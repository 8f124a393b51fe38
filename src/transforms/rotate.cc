// SPDX-License-Identifier: Apache-2.0
// rotate: random Hadamard rotations of the model's sites (QuaRot, arXiv 2404.00456), which spread
// outliers over all channels and leave the function of the network unchanged.
//
//   residual  x <- (s o x) H / sqrt(d): q, k, v, gate, up read it, o and down write it. RMSNorm
//             commutes with it once its gain is folded into its readers, and LayerNorm once the
//             stream has no mean. The embedding and the head keep their own basis: two online
//             transforms of d_model values a token, at both ends of the model, cost less than
//             untying them would (one more [n_vocab, d_model]); ends=folded does as published.
//   value     within each KV head: v writes it, o reads it. Nothing online.
//   heads     across the heads of o's input, online: Had_heads (x) I on top of `value`.
//   qk        query and key after RoPE, online; scores are unchanged. Only a quantized KV cache
//             gains from it, so it is not in the default.
//   ffn       input of down, online.
//
// kind=rht draws random signs before each Hadamard (one vector per site, the same in all layers);
// kind=hadamard does without. haar and dct put another matrix in its place, except across heads.
#include <bit>

#include "base/check.h"
#include "transforms/transform.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"kind", ParamKind::kChoice, "rht", 0, 0, "rht|hadamard|haar|dct",
     "Hadamard with random signs, without; a random orthogonal matrix; cosines"},
    {"sites", ParamKind::kSet, "residual+value+heads+ffn", 0, 0, "residual|value|heads|qk|ffn",
     "where to rotate"},
    {"ends", ParamKind::kChoice, "online", 0, 0, "online|folded|turned",
     "the ends turn the stream while they run, or are untied and hold it turned, or hold it "
     "turned"},
};

constexpr int64_t kSmallestBlock = 8;  // below this a block transform spreads nothing

class Rotate final : public Transform {
 public:
  explicit Rotate(const spec::Params& params)
      : spec_(print(params.canonical())),
        is_random_(params.word("kind") == "rht"),
        params_(params) {}

  std::string spec() const override { return spec_; }

  Status plan(const ModelDesc& model, uint64_t seed, BasisChange& basis,
              std::vector<std::string>& notes) const override {
    const size_t before = notes.size();
    int asked = 0, done = 0;
    for (int i = 0; i < kSites; ++i) {
      const auto site = static_cast<Site>(i);
      if (!params_.has("sites", site_name(site))) continue;
      ++asked;
      std::string reason = obstacle(model, site);
      if (reason.empty()) reason = add(model, site, seed, basis, notes);
      if (reason.empty()) {
        ++done;
        if (site == Site::kResidual) shape_stream(model, basis.form(), notes);
      } else {
        notes.push_back(
            fmt::format("rotate: site {} is left as it is: {}", site_name(site), reason));
      }
    }
    if (done == 0) {
      return error("rotate: none of the {} sites can be rotated: {}", asked,
                   notes.size() > before ? notes.back() : "");
    }
    return {};
  }

 private:
  void shape_stream(const ModelDesc& model, StreamForm& form,
                    std::vector<std::string>& notes) const {
    for (const LayerDesc& layer : model.layers) {
      const bool has_mean =
          layer.attn_norm.kind == NormKind::kLayer || layer.mlp_norm.kind == NormKind::kLayer;
      form.is_centred = form.is_centred || has_mean;
    }
    if (params_.word("ends") == "folded") form.ends = Ends::kFolded;
    if (params_.word("ends") != "turned") return;
    if (form.is_centred || model.positions == PositionKind::kLearned) {
      notes.emplace_back(
          "rotate: the ends are turned online: what enters the stream is more than one row of the "
          "embedding");
      return;
    }
    form.ends = Ends::kTurned;
  }

  // Why a site of this model cannot be rotated; empty if it can.
  static std::string obstacle(const ModelDesc& model, Site site) {
    const LayerDesc& first = model.layers[0];
    for (const LayerDesc& layer : model.layers) {
      // One operator serves a site in all layers; the stream has one width anyway.
      const bool is_same =
          site == Site::kResidual ||
          (site == Site::kFfn ? layer.mlp.d_ffn == first.mlp.d_ffn
                              : layer.attention.d_head == first.attention.d_head &&
                                    layer.attention.n_heads == first.attention.n_heads);
      if (!is_same) return "layers differ in size";
      if (site != Site::kResidual) continue;
      if (layer.is_sliced()) return "each place of a sliced stream has its own basis already";
      for (const NormDesc& norm : {layer.attn_norm, layer.mlp_norm}) {
        if (norm.kind == NormKind::kNone) return "a layer reads the stream without a norm";
      }
      if (layer.mlp_norm.has_bias && layer.mlp.n_experts > 0) {
        return "the bias of a norm before a router of experts has nowhere to go";
      }
      if (layer.attn_post_norm.kind != NormKind::kNone ||
          layer.mlp_post_norm.kind != NormKind::kNone) {
        return "the gain of a norm after attention or MLP stands between the writer and the stream";
      }
    }
    return {};
  }

  std::string add(const ModelDesc& model, Site site, uint64_t seed, BasisChange& basis,
                  std::vector<std::string>& notes) const {
    const AttentionDesc& attention = model.layers[0].attention;
    if (site == Site::kHeads) {
      auto op = make_head_axis(attention.n_heads, attention.d_head);
      if (!op) return op.error().message;
      basis.add(site, std::move(*op));
      return {};
    }
    const int64_t size = site == Site::kResidual ? model.d_model
                         : site == Site::kFfn    ? model.layers[0].mlp.d_ffn
                                                 : attention.d_head;
    if (params_.word("kind") == "dct") {
      if (size > kMaxDctSize) return "too many values for a DCT";
      basis.add(site, make_dct(size));
      return {};
    }
    if (params_.word("kind") == "haar") {
      auto haar = make_random_orthogonal(size, seed, static_cast<uint64_t>(site));
      if (!haar) return haar.error().message;
      basis.add(site, std::move(*haar));
      return {};
    }
    auto op = make_hadamard(size);
    if (!op) {
      const auto block = static_cast<int64_t>(1) << std::countr_zero(static_cast<uint64_t>(size));
      if (block < kSmallestBlock) return op.error().message;
      notes.push_back(fmt::format("rotate: site {}: {}; rotated in blocks of {} instead",
                                  site_name(site), op.error().message, block));
      op = make_hadamard(block);
      QUERN_CHECK(op.has_value());
    }
    if (is_random_) basis.add(site, make_signs(size, seed, static_cast<uint64_t>(site)));
    basis.add(site, std::move(*op));
    return {};
  }

  std::string spec_;
  bool is_random_;
  spec::Params params_;
};

}  // namespace

extern const TransformInfo rotate_transform_info;
const TransformInfo rotate_transform_info = {
    .name = "rotate",
    .params = kParams,
    .summary = "random Hadamard rotation of the model's sites (QuaRot)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Transform>> {
      return std::make_unique<Rotate>(params);
    },
};

}  // namespace quern
