// SPDX-License-Identifier: Apache-2.0
#include "recipe/dense_tensors.h"

#include <algorithm>
#include <cmath>

namespace quern {
namespace {

OutputTensor dense_tensor(std::string name, DType dtype, Shape shape, const float* values) {
  OutputTensor tensor;
  tensor.spec = {std::move(name), dtype, std::move(shape)};
  const int64_t n = *element_count(tensor.spec.shape);
  tensor.bytes.resize(static_cast<size_t>(n * dtype_bits(tensor.spec.dtype) / 8));
  convert_from_float(values, n, tensor.spec.dtype, tensor.bytes.data());
  return tensor;
}

bool is_norm(Role role) { return role == Role::kAttnNorm || role == Role::kMlpNorm; }

// Norms are few and each of their entries meets a whole column: one that took up a diagonal keeps
// single precision where the source's type would round it.
DType dtype_of(const WeightPlan& weight, const float* values) {
  if (!is_norm(weight.id.role)) return weight.dense_dtype;
  const auto n = static_cast<size_t>(weight.n_in);
  std::vector<float> back(n), stored(n);  // `stored` holds at most as many bytes
  convert_from_float(values, weight.n_in, weight.dense_dtype, stored.data());
  convert_to_float(weight.dense_dtype, stored.data(), weight.n_in, back.data());
  return std::equal(back.begin(), back.end(), values) ? weight.dense_dtype : DType::kF32;
}

}  // namespace

Status DenseTensors::add(const WeightPlan& weight, std::vector<OutputTensor>& out) const {
  const Shape shape = weight_shape(fused_.desc(), weight.id);
  QUERN_ASSIGN(const Matrix<float> values, fused_.weight(weight.id));
  out.push_back(dense_tensor(weight.name, dtype_of(weight, values.data()), shape, values.data()));
  return add_bias(weight, out);
}

Result<TensorSpec> DenseTensors::spec(const WeightPlan& weight) const {
  DType dtype = weight.dense_dtype;
  if (is_norm(weight.id.role)) {
    QUERN_ASSIGN(const Matrix<float> values, fused_.weight(weight.id));
    dtype = dtype_of(weight, values.data());
  }
  return TensorSpec{weight.name, dtype, weight_shape(fused_.desc(), weight.id)};
}

Status DenseTensors::add_bias(const WeightPlan& weight, std::vector<OutputTensor>& out) const {
  QUERN_ASSIGN(const std::vector<float> bias, fused_.bias(weight.id));
  add_bias(weight, bias, out);
  return {};
}

void DenseTensors::add_bias(const WeightPlan& weight, const std::vector<float>& bias,
                            std::vector<OutputTensor>& out) const {
  if (bias.empty() || plan_.copied().contains(weight.bias_name)) return;
  out.push_back(dense_tensor(weight.bias_name, dtype_of(weight, bias.data()),
                             {static_cast<int64_t>(bias.size())}, bias.data()));
}

void DenseTensors::round_bias(const WeightPlan& weight, std::vector<float>& bias) {
  const auto n = static_cast<int64_t>(bias.size());
  std::vector<float> stored(bias.size());  // holds at most as many bytes
  convert_from_float(bias.data(), n, weight.dense_dtype, stored.data());
  convert_to_float(weight.dense_dtype, stored.data(), n, bias.data());
}

void add_planes(const WeightPlan& weight, const CodedMatrix& codes,
                std::vector<OutputTensor>& out) {
  for (size_t i = 0; i < codes.specs().size(); ++i) {
    const PlaneSpec& plane = codes.specs()[i];
    OutputTensor tensor{{plane_name(weight.name, plane), plane.dtype, plane.shape}, {}};
    tensor.bytes.assign(codes.plane(i).begin(), codes.plane(i).end());
    out.push_back(std::move(tensor));
  }
}

void add_ranges(const WeightPlan& weight, const ActRounding& rounding,
                std::vector<OutputTensor>& out) {
  if (rounding.ranges.empty()) return;
  out.push_back(dense_tensor(ranges_name(weight.name), DType::kF32,
                             {static_cast<int64_t>(rounding.ranges.size())},
                             rounding.ranges.data()));
}

void add_operators(const BasisChange& basis, int layer, std::vector<OutputTensor>& out) {
  for (const OperatorTensor& data : basis.tensors(layer)) {
    OutputTensor tensor{{data.name, data.dtype, data.shape}, {}};
    tensor.bytes.assign(data.bytes.begin(), data.bytes.end());
    out.push_back(std::move(tensor));
  }
}

Status check_finite(const Matrix<float>& w, const WeightId& id) {
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.cols(); ++j) {
      if (std::isfinite(w(i, j))) continue;
      return error("{}: the weight at [{}, {}] is {}; the source model is damaged", to_string(id),
                   i, j, w(i, j));
    }
  }
  return {};
}

}  // namespace quern
