// SPDX-License-Identifier: Apache-2.0
// bias_correction: every matrix of attention and of dense MLPs gets a bias, and coding moves it by
//
//     b <- b + (W - W_hat) E[x],
//
// x what the matrix reads behind the layers already coded, so that the mean error of its output on
// calibration text is zero. References: Nagel et al., Data-free quantization (arXiv 1906.04721),
// section 4.2; CVXQ (arXiv 2409.02026).
#include "transforms/transform.h"

namespace quern {
namespace {

class BiasCorrection final : public Transform {
 public:
  std::string spec() const override { return "bias_correction"; }
  bool corrects_biases() const override { return true; }

  Status plan(const ModelDesc& model, uint64_t, BasisChange& basis,
              std::vector<std::string>& notes) const override {
    basis.form().has_biases = true;
    for (const LayerDesc& layer : model.layers) {
      if (layer.mlp.n_experts == 0) continue;
      notes.emplace_back("bias_correction: experts stay without biases");
      break;
    }
    return {};
  }
};

}  // namespace

extern const TransformInfo bias_correction_transform_info;
const TransformInfo bias_correction_transform_info = {
    .name = "bias_correction",
    .params = {},
    .summary = "biases that take the mean out of the error of each output",
    .make = [](const spec::Params&) -> Result<std::unique_ptr<Transform>> {
      return std::make_unique<BiasCorrection>();
    },
};

}  // namespace quern
