// SPDX-License-Identifier: Apache-2.0
#include "model/packed.h"

#include <cmath>
#include <cstring>

namespace quern {
namespace {

constexpr int64_t kMaxAxis = int64_t{1} << 31;
constexpr int64_t kMaxSeed = int64_t{1} << 53;

// What texts made, so that equal texts share it.
struct Known {
  std::map<std::string, std::shared_ptr<const Codec>> codecs;
  std::map<std::string, std::shared_ptr<const ActQuantizer>> acts;
};

Result<PackedTensor> tensor_from_json(const Json& json, Known& known) {
  if (!json.is_object()) return error("expected an object, got {}", json.type_name());
  PackedTensor tensor;
  QUERN_ASSIGN(const std::string text, json_string(json, "codec"));
  std::shared_ptr<const Codec>& codec = known.codecs[text];
  if (codec == nullptr) {
    QUERN_ASSIGN(codec, make_codec(text));
  }
  tensor.codec = codec;
  if (json.contains("act")) {
    QUERN_ASSIGN(const std::string act_text, json_string(json, "act"));
    std::shared_ptr<const ActQuantizer>& act = known.acts[act_text];
    if (act == nullptr) {
      QUERN_ASSIGN(act, make_act(act_text));
    }
    tensor.act = act;
  }
  QUERN_ASSIGN(tensor.n_out, json_int(json, "n_out", 1, kMaxAxis));
  QUERN_ASSIGN(tensor.n_in, json_int(json, "n_in", 1, kMaxAxis));
  QUERN_ASSIGN(tensor.error, json_number_or(json, "error", 0));
  return tensor;
}

}  // namespace

std::string plane_name(const std::string& weight, const PlaneSpec& plane) {
  return weight + "." + plane.name;
}

std::string ranges_name(const std::string& weight) { return weight + ".input_ranges"; }

Json Packed::to_json() const {
  Json list = Json::object();
  for (const auto& [name, tensor] : tensors) {
    list[name] = {{"codec", tensor.codec->spec()},
                  {"n_out", tensor.n_out},
                  {"n_in", tensor.n_in},
                  {"error", tensor.error}};
    if (tensor.act != nullptr) list[name]["act"] = tensor.act->spec();
  }
  return {{"quant_method", "quern"},
          {"format_version", kFormatVersion},
          {"quern_version", quern_version},
          {"recipe", recipe},
          {"recipe_digest", recipe_digest},
          {"source_digest", source_digest},
          {"seed", seed},
          {"calibration", calibration},
          {"basis", basis.to_json()},
          {"tensors", std::move(list)}};
}

Result<Packed> Packed::from_config(const Json& config, const FindTensor& find) {
  Packed packed;
  const auto it = config.find("quantization_config");
  if (it == config.end() || it->is_null()) return packed;
  if (!it->is_object()) return error("config.json: quantization_config is not an object");
  const Json& json = *it;
  QUERN_ASSIGN(const std::string method, json_string(json, "quant_method"));
  if (method != "quern") {
    return error("config.json: quant_method '{}' cannot be read; give the unquantized model",
                 method);
  }
  QUERN_ASSIGN(const int64_t version, json_int(json, "format_version", 1, 1 << 20));
  if (version > kFormatVersion) {
    return error("config.json: format_version {} is newer than {}; update quern", version,
                 kFormatVersion);
  }
  QUERN_ASSIGN(packed.recipe, json_string(json, "recipe"));
  if (packed.recipe.empty()) return error("config.json: quantization_config has an empty recipe");
  QUERN_ASSIGN(packed.recipe_digest, json_string_or(json, "recipe_digest", ""));
  QUERN_ASSIGN(packed.source_digest, json_string_or(json, "source_digest", ""));
  QUERN_ASSIGN(packed.quern_version, json_string_or(json, "quern_version", ""));
  QUERN_ASSIGN(const int64_t seed, json_int_or(json, "seed", 0, kMaxSeed, 0));
  packed.seed = static_cast<uint64_t>(seed);
  if (json.contains("calibration")) packed.calibration = json["calibration"];
  if (json.contains("basis")) {
    QUERN_ASSIGN(packed.basis, BasisChange::from_json(json["basis"], find));
  }
  const auto list = json.find("tensors");
  if (list == json.end() || !list->is_object()) {
    return error("config.json: quantization_config.tensors is not an object");
  }
  Known known;
  for (const auto& [name, value] : list->items()) {
    auto tensor = tensor_from_json(value, known);
    if (!tensor) {
      return tl::unexpected(
          in_context(tensor.error(), "config.json: quantization_config.tensors." + name));
    }
    packed.tensors.emplace(name, std::move(*tensor));
  }
  return packed;
}

Result<CodesView> find_codes(const Checkpoint& checkpoint, const std::string& weight,
                             const PackedTensor& tensor) {
  QUERN_ASSIGN(const std::vector<PlaneSpec> planes,
               tensor.codec->planes(tensor.n_out, tensor.n_in));
  CodesView codes{tensor.n_out, tensor.n_in, {}};
  for (const PlaneSpec& plane : planes) {
    const std::string name = plane_name(weight, plane);
    const TensorInfo* info = checkpoint.find(name);
    if (info == nullptr) return error("{}: tensor '{}' is missing", checkpoint.path(), name);
    if (info->dtype != plane.dtype || info->shape != plane.shape) {
      return error("{}: tensor '{}' is {} {}, expected {} {} for {}", checkpoint.path(), name,
                   dtype_name(info->dtype), to_string(info->shape), dtype_name(plane.dtype),
                   to_string(plane.shape), tensor.codec->spec());
    }
    codes.planes.push_back(info->bytes);
  }
  return codes;
}

Result<std::shared_ptr<const ActRounding>> read_rounding(std::shared_ptr<const ActQuantizer> act,
                                                         int64_t n_in, const TensorInfo* ranges,
                                                         const std::string& name) {
  if (act == nullptr) return nullptr;
  ActRounding rounding{std::move(act), {}};
  if (const int64_t n = rounding.act->n_ranges(n_in); n > 0) {
    if (ranges == nullptr) return error("tensor '{}' is missing", name);
    if (ranges->dtype != DType::kF32 || ranges->shape != Shape{n}) {
      return error("tensor '{}' is {} {}, expected F32 [{}] for {}", name,
                   dtype_name(ranges->dtype), to_string(ranges->shape), n, rounding.act->spec());
    }
    rounding.ranges.resize(static_cast<size_t>(n));
    std::memcpy(rounding.ranges.data(), ranges->bytes, ranges->n_bytes);
    const Status checked = check_ranges(*rounding.act, n_in, rounding.ranges);
    if (!checked) return tl::unexpected(in_context(checked.error(), name));
  }
  return std::make_shared<const ActRounding>(std::move(rounding));
}

Result<std::shared_ptr<const ActRounding>> find_rounding(const Checkpoint& checkpoint,
                                                         const std::string& weight,
                                                         const PackedTensor& tensor) {
  const std::string name = ranges_name(weight);
  auto rounding = read_rounding(tensor.act, tensor.n_in, checkpoint.find(name), name);
  if (!rounding) return tl::unexpected(in_context(rounding.error(), checkpoint.path()));
  return rounding;
}

void release_codes(const Checkpoint& checkpoint, const std::string& weight,
                   const PackedTensor& tensor) {
  const auto planes = tensor.codec->planes(tensor.n_out, tensor.n_in);
  for (size_t i = 0; planes && i < planes->size(); ++i) {
    const TensorInfo* info = checkpoint.find(plane_name(weight, (*planes)[i]));
    if (info != nullptr) checkpoint.release(*info);
  }
}

}  // namespace quern
