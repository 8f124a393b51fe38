// SPDX-License-Identifier: Apache-2.0
// A transform is a map from sites to operators: it says in which basis a model is coded. It only
// plans; model/fuse does all folding, and the runtime applies what remains online.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/layer_desc.h"
#include "spec/params.h"
#include "transforms/basis.h"

namespace quern {

class Transform {
 public:
  virtual ~Transform() = default;
  virtual std::string spec() const = 0;
  // Adds operators to `basis`. A site that cannot be changed is left alone and `notes` says why
  // and what is done instead; fails when nothing of what was asked can be done.
  virtual Status plan(const ModelDesc& model, uint64_t seed, BasisChange& basis,
                      std::vector<std::string>& notes) const = 0;
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
