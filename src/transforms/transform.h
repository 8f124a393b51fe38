// SPDX-License-Identifier: Apache-2.0
// A transform is a map from sites to operators: it says in which basis a model is coded. model/fuse
// does all folding, and the runtime applies what remains online.
//
// What needs no data is planned before any weight is read. A fitted transform declares its sites in
// `plan` (BasisChange::expect) and adds its operators layer by layer, from statistics of what the
// original model computes there, in the basis that the stages before it have made.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/layer_desc.h"
#include "model/roles.h"
#include "spec/params.h"
#include "tensor/matrix.h"
#include "transforms/basis.h"

namespace quern {

// What a fitted transform wants to know of the values at a site: one of kAttnIn, kHeads, kMlpIn,
// kFfn, whose width is n.
struct StatisticsNeed {
  Site site = Site::kAttnIn;
  bool second_moment = false;  // n^2 doubles
  int64_t max_rows = 0;        // sample rows, spread evenly over all tokens
};

// Of the rows that reach a site, of all experts together. The maxima and means are always there.
struct SiteStatistics {
  int64_t n_rows = 0;
  std::vector<float> abs_max;       // [n] max |x_j|
  std::vector<double> mean_abs;     // [n] mean |x_j|
  std::vector<double> mean_square;  // [n] mean x_j^2
  Matrix<double> second_moment;     // [n, n] mean x^T x, if it was asked for
  Matrix<float> rows;               // [at most max_rows, n], if they were asked for
};

// One decoder layer of the original model, in the basis of the stages before the transform.
class LayerView {
 public:
  virtual ~LayerView() = default;
  virtual const ModelDesc& model() const = 0;
  virtual int layer() const = 0;
  // Of a site that `needs` named; null where no row reached it.
  virtual const SiteStatistics* statistics(Site site) const = 0;
  // Mean x^T x [d_model, d_model] of a sliced stream at a place (transforms/basis.h) of this layer,
  // in the original coordinates, behind all slices that the transform has set; for layer() -1 at
  // place 0.
  virtual Result<Matrix<double>> stream_moment(int /*place*/) const {
    return error("this view shows no stream");
  }
  // The weight [n_out, n_in] as it reads and writes that basis; `expert` -1: the dense MLP's.
  virtual Result<Matrix<float>> weight(Role role, int expert = -1) const = 0;
};

class Transform {
 public:
  virtual ~Transform() = default;
  virtual std::string spec() const = 0;
  // Adds operators to `basis`, or declares what will be fitted. A site that cannot be changed is
  // left alone and `notes` says why and what is done instead; fails when nothing of what was asked
  // can be done.
  virtual Status plan(const ModelDesc& model, uint64_t seed, BasisChange& basis,
                      std::vector<std::string>& notes) const = 0;

  virtual bool is_fitted() const { return false; }
  virtual bool slices() const { return false; }  // cuts directions off the stream
  // Biases are to make up for what coding does to the mean of outputs (StreamForm::has_biases).
  virtual bool corrects_biases() const { return false; }
  // What `fit` reads of a layer, each site once.
  virtual std::vector<StatisticsNeed> needs(const ModelDesc&, int /*layer*/) const { return {}; }
  // Adds this layer's operators (BasisChange::add with its index) at sites that `plan` declared.
  // One that slices the stream is called with layer -1 first, for its beginning.
  // Must depend on the view and the seed alone. Fails on what no operator could repair.
  virtual Status fit(const LayerView&, uint64_t /*seed*/, BasisChange&,
                     std::vector<std::string>& /*notes*/) const {
    return {};
  }
};

struct TransformInfo {
  std::string_view name;
  spec::ParamSpecs params;
  std::string_view summary;
  Result<std::unique_ptr<Transform>> (*make)(const spec::Params& params);
};

std::span<const TransformInfo> transforms();  // the rows of list.inc
const TransformInfo* find_transform(std::string_view name);

}  // namespace quern
