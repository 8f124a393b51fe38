// SPDX-License-Identifier: Apache-2.0
#include "recipe/finished_steps.h"

#include <algorithm>
#include <utility>

namespace quern {

Status FinishedSteps::record(int step, const Json& report, Packed& packed,
                             std::vector<std::string>& notes) {
  const auto rows = report.find("matrices");
  if (rows == report.end() || !rows->is_object()) return journal_.damaged(step, "no matrices");
  for (const auto& item : rows->items()) {
    const std::string& name = item.key();
    const auto weight =
        std::find_if(plan_.weights().begin(), plan_.weights().end(),
                     [&](const WeightPlan& w) { return w.fate == Fate::kCoded && w.name == name; });
    if (weight == plan_.weights().end()) return journal_.damaged(step, name);
    const auto loss = json_number(item.value(), "error");
    const auto damping = json_number(item.value(), "damping");
    const auto raises = json_int(item.value(), "damping_raises", 0, 1 << 20);
    const auto fallback = json_string(item.value(), "fallback");
    if (!loss || !damping || !raises || !fallback) return journal_.damaged(step, name);
    PackedTensor tensor;
    tensor.codec = codec_named(weight->solver->codec().spec());
    tensor.n_out = weight->n_out;
    tensor.n_in = weight->n_in;
    tensor.error = *loss;
    tensor.act = weight->act;
    packed.tensors.emplace(name, std::move(tensor));
    if (*raises > 0) {
      notes.push_back(fmt::format("{}: damping raised {} times, to {}", name, *raises, *damping));
    }
    if (!fallback->empty()) notes.push_back(fmt::format("{}: {}", name, *fallback));
  }
  return {};
}

std::shared_ptr<const Codec> FinishedSteps::codec_named(const std::string& spec) {
  std::shared_ptr<const Codec>& codec = codecs_[spec];
  if (codec == nullptr) codec = std::move(*make_codec(spec));
  return codec;
}

Result<LinearWeight> FinishedSteps::reload(int step, const WeightPlan& weight,
                                           const std::shared_ptr<SafetensorsFile>& file) const {
  LinearWeight linear;
  linear.n_out = weight.n_out;
  linear.n_in = weight.n_in;
  linear.codec = &weight.solver->codec();
  linear.codes = {weight.n_out, weight.n_in, {}};
  QUERN_ASSIGN(const auto planes, linear.codec->planes(weight.n_out, weight.n_in));
  for (const PlaneSpec& plane : planes) {
    const TensorInfo* tensor = file->find(plane_name(weight.name, plane));
    if (tensor == nullptr || tensor->n_bytes != plane.n_bytes()) {
      return journal_.damaged(step, plane_name(weight.name, plane));
    }
    linear.codes.planes.push_back(tensor->bytes);
  }
  linear.owner = file;
  const std::string ranges = ranges_name(weight.name);
  auto rounding = read_rounding(weight.act, weight.n_in, file->find(ranges), ranges);
  if (!rounding) return journal_.damaged(step, rounding.error().message);
  linear.rounding = *std::move(rounding);
  const TensorInfo* bias = file->find(weight.bias_name);
  if (bias == nullptr) return in_runtime_form(std::move(linear), weight.solver->codec());
  if (!is_plain_float(bias->dtype) || bias->shape != Shape{weight.n_out}) {
    return journal_.damaged(step, weight.bias_name);
  }
  linear.bias.resize(static_cast<size_t>(weight.n_out));
  convert_to_float(bias->dtype, bias->bytes, weight.n_out, linear.bias.data());
  return in_runtime_form(std::move(linear), weight.solver->codec());
}

}  // namespace quern
