// SPDX-License-Identifier: Apache-2.0
#include "recipe/output_size.h"

#include <algorithm>

#include "formats/safetensors.h"

namespace quern {
namespace {

constexpr uint64_t kShardBytes = uint64_t{5} << 30;

Status add_coded(const WeightPlan& weight, std::vector<TensorSpec>& out) {
  QUERN_ASSIGN(const std::vector<PlaneSpec> planes,
               weight.solver->codec().planes(weight.n_out, weight.n_in));
  for (const PlaneSpec& plane : planes) {
    out.push_back({plane_name(weight.name, plane), plane.dtype, plane.shape});
  }
  const int64_t n_ranges = weight.act == nullptr ? 0 : weight.act->n_ranges(weight.n_in);
  if (n_ranges > 0) out.push_back({ranges_name(weight.name), DType::kF32, {n_ranges}});
  return {};
}

}  // namespace

std::vector<size_t> shard_starts(std::span<const uint64_t> sizes) {
  std::vector<size_t> starts = {0};
  uint64_t in_shard = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (in_shard > 0 && in_shard + sizes[i] > kShardBytes) {
      starts.push_back(i);
      in_shard = 0;
    }
    in_shard += sizes[i];
  }
  return starts;
}

Result<std::vector<TensorSpec>> output_tensors(const Prepared& prepared, const OutputPlan& plan) {
  const DenseTensors dense(*prepared.fused, plan);
  std::vector<TensorSpec> specs;
  for (const WeightPlan& weight : plan.weights()) {
    if (weight.fate == Fate::kCopy) continue;
    if (weight.fate == Fate::kDense) {
      QUERN_ASSIGN(TensorSpec spec, dense.spec(weight));
      specs.push_back(std::move(spec));
    } else {
      QUERN_TRY(add_coded(weight, specs));
    }
    std::vector<OutputTensor> bias;
    QUERN_TRY(dense.add_bias(weight, bias));
    for (OutputTensor& tensor : bias) specs.push_back(std::move(tensor.spec));
  }
  const auto n_layers = static_cast<int>(prepared.source_desc().layers.size());
  for (int layer = BasisChange::kAllLayers; layer < n_layers; ++layer) {
    for (const OperatorTensor& data : prepared.basis.tensors(layer)) {
      specs.push_back({data.name, data.dtype, data.shape});
    }
  }
  for (const std::string& name : plan.copied()) {
    const TensorInfo* tensor = prepared.files->store().checkpoint().find(name);
    if (tensor == nullptr) return error("tensor '{}' vanished from the source", name);
    specs.push_back({name, tensor->dtype, tensor->shape});
  }
  std::sort(specs.begin(), specs.end(),
            [](const TensorSpec& a, const TensorSpec& b) { return a.name < b.name; });
  return specs;
}

Result<uint64_t> weight_file_bytes(std::vector<TensorSpec> tensors) {
  std::vector<uint64_t> sizes;
  uint64_t total = 0;
  for (const TensorSpec& tensor : tensors) {
    const auto bytes = stored_bytes(tensor.dtype, tensor.shape);
    if (!bytes) return error("{}: its size has no number", tensor.name);
    sizes.push_back(static_cast<uint64_t>(*bytes));
    total += sizes.back();
  }
  std::vector<size_t> starts = shard_starts(sizes);
  starts.push_back(tensors.size());
  for (size_t s = 0; s + 1 < starts.size(); ++s) {
    const auto first = tensors.begin() + static_cast<int64_t>(starts[s]);
    const auto last = tensors.begin() + static_cast<int64_t>(starts[s + 1]);
    QUERN_ASSIGN(const size_t header, safetensors_header_bytes({first, last}));
    total += header;
  }
  return total;
}

}  // namespace quern
