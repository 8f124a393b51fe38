// SPDX-License-Identifier: Apache-2.0
#include "model/norms.h"

#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"
#include "model/row_passes.h"

namespace quern {

void norm_row(const NormDesc& norm, const NormWeight& weight, const float* src, int64_t n,
              float* dst, int64_t divisor) {
  if (divisor > n && norm.kind == NormKind::kRms) {
    // x / sqrt(sum / D + eps) is x sqrt(D / n) / sqrt(sum / n + eps D / n).
    const double ratio = static_cast<double>(divisor) / static_cast<double>(n);
    const float* gain = weight.gain.empty() ? nullptr : weight.gain.data();
    kernels().rms_norm(src, gain, static_cast<float>(norm.eps * ratio), n, dst);
    kernels().scale(static_cast<float>(std::sqrt(ratio)), n, dst);
    return;
  }
  const float* gain = weight.gain.empty() ? nullptr : weight.gain.data();
  const float* bias = weight.bias.empty() ? nullptr : weight.bias.data();
  const auto eps = static_cast<float>(norm.eps);
  if (norm.kind == NormKind::kRms) {
    kernels().rms_norm(src, gain, eps, n, dst);
  } else if (norm.kind == NormKind::kLayer) {
    kernels().layer_norm(src, gain, bias, eps, n, dst);
  } else if (src != dst) {
    std::copy_n(src, n, dst);
  }
}

void add_normed(const NormDesc& norm, const NormWeight& weight, float* x, int64_t n, float* y) {
  norm_row(norm, weight, x, n, x);
  kernels().add(x, n, y);
}

void apply_norm(const NormDesc& norm, const NormWeight& weight, MatrixView<const float> src,
                MatrixView<float> dst) {
  if (norm.kind == NormKind::kNone && src.data == dst.data) return;
  for_rows(dst, [&](int64_t i) { norm_row(norm, weight, src.row(i), src.cols, dst.row(i)); });
}

}  // namespace quern
