// SPDX-License-Identifier: Apache-2.0
// The basis a model is in: operators at the sites of a decoder, for all layers or for one.
//
// What of a chain folds into weights and what runs online is decided in model/fuse.h alone.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "transforms/operator.h"

namespace quern {

enum class Site : uint8_t {
  kResidual,  // the stream between layers: online after the embedding and before the final norm
  kValue,     // value and attention output within each head: wholly fused
  kHeads,     // across the heads of the input of o, behind kValue: online
  kQk,        // query and key after RoPE, within each head: online
  kFfn,       // input of down, not of shared experts: online
  kAttnIn,    // what q, k, v read: online behind the norm
  kMlpIn,     // what gate, up and routers read: online behind the norm
};
constexpr int kSites = 7;
std::string_view site_name(Site site);

// Operators of one site in one layer.
constexpr size_t kMaxChain = 8;

// Operators applied one after another. A copy shares them.
class Chain {
 public:
  bool empty() const { return operators_.empty(); }
  void add(OperatorPtr op);
  const std::vector<OperatorPtr>& operators() const { return operators_; }
  // Without the first n operators; their first n.
  Chain after(size_t n) const;
  Chain first(size_t n) const;

  template <class T>
  void apply(T* x, int64_t count) const {
    for (const auto& op : steps_) op->apply(x, count);
  }
  // From x to y, which may not overlap x.
  void apply_to(const float* x, int64_t count, float* y) const;
  template <class T>
  void apply_inverse(T* x, int64_t count) const {
    for (auto op = steps_.rbegin(); op != steps_.rend(); ++op) {
      (*op)->apply_inverse(x, count);
    }
  }
  // (M_2 M_1)^-T = M_2^-T M_1^-T: in the order of apply.
  template <class T>
  void apply_inverse_transpose(T* x, int64_t count) const {
    for (const auto& op : steps_) op->apply_inverse_transpose(x, count);
  }
  int64_t flops(int64_t count) const;  // of one application to `count` values
  int64_t bytes() const;

 private:
  std::vector<OperatorPtr> operators_;
  std::vector<OperatorPtr> steps_;  // the same in fewer passes
};

// Where the ends of a model stand. A tied embedding and head stay one matrix unless they are
// folded: the gain of the final norm goes into the head then.
enum class Ends : uint8_t {
  kOnline,  // as they were: the stream is changed behind the embedding, back before the final norm
  kFolded,  // both in the stream's basis, the gain of the final norm in the head
  kTurned,  // both in the stream's basis: it is changed back before the final norm, and what that
            // gives is changed again before the head; for orthogonal chains
};

// What a change of basis does to the shape of a model.
struct StreamForm {
  // LayerNorms before attention and MLP have become RMSNorms: their means are taken from the
  // embedding and from what is written to the stream, their biases moved into those of the readers.
  bool is_centred = false;
  Ends ends = Ends::kOnline;
  // The matrices of attention and of dense MLPs have biases, for coding to correct.
  bool has_biases = false;
  // Widths of a sliced stream at its 2 n_layers + 1 places: before attention and before the MLP of
  // each layer, and behind the last; that one is d_model. Empty: not sliced.
  std::vector<int64_t> widths;
  bool operator==(const StreamForm&) const = default;
  bool has_folded_ends() const { return ends == Ends::kFolded; }
};
// The place before attention of a layer; before its MLP; behind it.
constexpr int place_in(int layer) { return 2 * layer; }
constexpr int place_mid(int layer) { return 2 * layer + 1; }
constexpr int place_out(int layer) { return 2 * layer + 2; }

// Chains by site and layer, with an order of stages: what an earlier stage of a recipe adds stands
// before what a later one adds, whichever is added first. kResidual has one chain for all layers.
class BasisChange {
 public:
  static constexpr int kAllLayers = -1;

  // The operators of a site in a layer; with kAllLayers those that every layer has.
  const Chain& at(Site site, int layer = kAllLayers) const;
  // Behind all operators of the site that this stage and those before it added.
  void add(Site site, OperatorPtr op) { add(site, kAllLayers, std::move(op)); }
  void add(Site site, int layer, OperatorPtr op);
  // Later calls of `add` and `expect` belong to this stage (from 0).
  enum class Origin : uint8_t { kPlanned, kFitted };
  void begin_stage(int stage, Origin origin = Origin::kPlanned) {
    stage_ = stage;
    origin_ = origin;
  }
  // Says that a fitted transform will add operators at a site, so that weights around it are
  // planned as changed before any operator is known.
  void expect(Site site) { is_expected_[static_cast<size_t>(site)] = true; }

  bool is_expected(Site site) const { return is_expected_[static_cast<size_t>(site)]; }

  StreamForm& form() { return form_; }
  const StreamForm& form() const { return form_; }
  bool is_sliced() const { return !form_.widths.empty(); }
  // The directions that a place of a sliced stream keeps: Q [d_model, width], orthonormal columns;
  // the stream there is h Q. Exists while a model is being changed; a file has it in its weights.
  void set_slice(int place, std::shared_ptr<const Matrix<double>> q);
  const Matrix<double>* slice(int place) const;

  bool empty() const;
  // Whether no layer has or will have an operator there.
  bool empty(Site site) const;
  // Without what stages from `stage` on added, but for the residual stream: of that all.
  BasisChange before_stage(int stage) const;
  int last_layer() const;  // the highest layer with operators of its own; -1: none

  // {"residual": [{"op": "signs", ...}, {"op": "diagonal", "layer": 3, ...}], ...}
  Json to_json() const;
  // `find` looks up tensors of the model's files; null: there are none.
  static Result<BasisChange> from_json(const Json& json, const FindTensor& find = nullptr);

  // The tensors of a layer's own operators (of kAllLayers: of the common ones), under the names
  // they have in the model's files.
  std::vector<OperatorTensor> tensors(int layer) const;

  // What was fitted to a layer, with its stages: [{"site", "stage", "op": {..}}, ...]; and back.
  Json fitted_json(int layer) const;
  Status add_fitted(int layer, const Json& json, const FindTensor& find);

 private:
  struct Entry {
    int stage = 0, layer = kAllLayers;
    OperatorPtr op;
    Origin origin = Origin::kPlanned;
  };
  struct SiteEntries {
    std::vector<Entry> entries;  // in the order of the stages
    Chain common;
    std::map<int, Chain> own;  // of layers with entries of their own
  };
  void insert(Site site, Entry entry);
  size_t count(Site site, int layer) const;

  std::array<SiteEntries, kSites> sites_;
  std::array<bool, kSites> is_expected_{};
  StreamForm form_;
  std::map<int, std::shared_ptr<const Matrix<double>>> slices_;
  int stage_ = 0;
  Origin origin_ = Origin::kPlanned;
};

}  // namespace quern
