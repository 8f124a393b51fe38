// SPDX-License-Identifier: Apache-2.0
// A hostile quantization_config beside small coded tensors: refused or usable, without a crash or a
// large allocation. What is accepted prints to a text that is accepted again.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>

#include "base/check.h"
#include "formats/json.h"
#include "model/fuse.h"
#include "model/linear.h"
#include "model/packed.h"

namespace quern {
namespace {

constexpr int64_t kOut = 6, kIn = 32;

// The planes that a few codecs have for a [6, 32] matrix `w`, and for the other way round `t`.
class Planes final : public Checkpoint {
 public:
  Planes() {
    path_ = "memory";
    add("w.codes", DType::kU8, {kOut, kIn / 2});  // 4 bits
    add("w.scales", DType::kF16, {kOut, 2});      // groups of 16
    add("w.zeros", DType::kU8, {kOut, 2});
    add_floats("w.input_ranges", {1});
    add_floats("t.input_ranges", {2});
    add("t.codes", DType::kU8, {kIn, 3});  // 3 or 4 bits of 6 columns
    add("t.scales", DType::kF16, {kIn, 1});
    add_floats("quern.basis.ffn.0.scale", {48});
    add_floats("quern.basis.attn_in.0.matrix", {8, 8});
    add_floats("quern.basis.layers.1.mlp_in.0.blocks", {4, 8, 8});
    add("quern.basis.layers.0.ffn.0.order", DType::kI32, {48});
    for (int32_t i = 0; i < 48; ++i) std::memcpy(blocks_.back().get() + 4 * i, &i, sizeof(i));
  }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view name) const override {
    for (const TensorInfo& tensor : tensors_) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
  Status read_rows(const TensorInfo&, int64_t, int64_t, float*) const override {
    return error("not read here");
  }
  void release(const TensorInfo&) const override {}

 private:
  void add(const std::string& name, DType dtype, const Shape& shape) {
    const auto n = static_cast<size_t>(*element_count(shape) * dtype_bits(dtype) / 8);
    // A heap block of its own: one byte too far is seen.
    blocks_.push_back(std::make_unique<std::byte[]>(n));
    std::byte* bytes = blocks_.back().get();
    for (size_t i = 0; i < n; ++i) bytes[i] = static_cast<std::byte>(i * 37 + 11);
    tensors_.push_back({name, dtype, shape, bytes, n, 0});
  }
  void add_floats(const std::string& name, const Shape& shape) {
    add(name, DType::kF32, shape);
    const int64_t n = *element_count(shape);
    for (int64_t i = 0; i < n; ++i) {
      const float value = 0.25f + static_cast<float>(i % 7);
      std::memcpy(blocks_.back().get() + 4 * i, &value, sizeof(value));
    }
  }
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
  std::vector<TensorInfo> tensors_;
};

ModelDesc small_model() {
  ModelDesc model;
  model.d_model = 32;
  LayerDesc layer;
  layer.attention.n_heads = 4;
  layer.attention.n_kv_heads = 2;
  layer.attention.d_head = 8;
  layer.mlp.d_ffn = 48;
  layer.attn_norm.kind = layer.mlp_norm.kind = NormKind::kRms;
  model.layers = {layer, layer};
  return model;
}

void use_basis(const BasisChange& basis, const ModelDesc& model) {
  for (int layer = 0; layer < 2; ++layer) {
    const LayerDesc& desc = model.layers[static_cast<size_t>(layer)];
    const std::pair<Site, int64_t> sites[] = {{Site::kResidual, 32},
                                              {Site::kValue, 8},
                                              {Site::kHeads, 32},
                                              {Site::kQk, 8},
                                              {Site::kFfn, 48},
                                              {Site::kAttnIn, model.width_in(desc)},
                                              {Site::kMlpIn, model.width_mid(desc)}};
    for (const auto& [site, size] : sites) {
      std::vector<float> x(static_cast<size_t>(size), 1.0f);
      basis.at(site, layer).apply(x.data(), size);
      basis.at(site, layer).apply_inverse(x.data(), size);
      basis.at(site, layer).apply_inverse_transpose(x.data(), size);
    }
    online_operators(basis, model, layer);
  }
}

void use_tensor(const std::string& name, const PackedTensor& tensor) {
  static const Planes planes;
  const auto codes = find_codes(planes, name, tensor);
  if (!codes) return;
  Matrix<float> values(tensor.n_out, tensor.n_in);
  tensor.codec->decode(*codes, 0, tensor.n_out, values.data());
  LinearWeight weight;
  weight.n_out = tensor.n_out;
  weight.n_in = tensor.n_in;
  weight.codec = tensor.codec.get();
  weight.codes = *codes;
  auto rounding = find_rounding(planes, name, tensor);
  if (!rounding) return;
  weight.rounding = *std::move(rounding);
  if (!check_rounding(weight)) return;
  Matrix<float> x(2, tensor.n_in), y(2, tensor.n_out);
  for (int64_t j = 0; j < 2 * tensor.n_in; ++j) x.data()[j] = static_cast<float>(j % 11) - 4.5f;
  linear(weight, x.view(), y.view());
}

void try_config(const Json& config) {
  static const ModelDesc model = small_model();
  static const Planes planes;
  const FindTensor find = [](std::string_view name) { return planes.find(name); };
  const auto packed = Packed::from_config(config, find);
  if (!packed || packed->empty()) return;
  if (check_form(packed->basis, model)) {
    const ModelDesc changed = in_basis(model, packed->basis);
    if (check_basis(packed->basis, changed)) use_basis(packed->basis, changed);
  }
  for (const auto& [name, tensor] : packed->tensors) use_tensor(name, tensor);
  const Json printed = packed->to_json();
  const auto again = Packed::from_config({{"quantization_config", printed}}, find);
  QUERN_CHECK(again.has_value() && again->to_json() == printed);
}

}  // namespace
}  // namespace quern

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = quern::parse_json(text, "config.json");
  if (json) quern::try_config({{"quantization_config", *json}});
  return 0;
}
