// SPDX-License-Identifier: Apache-2.0
#include "codecs/codec.h"

#include <cstring>

#include "base/checked.h"
#include "kernels/kernels.h"
#include "spec/registry.h"

namespace quern {

#define QUERN_CODEC(name) extern const CodecInfo name##_codec_info;
#include "codecs/list.inc"
#undef QUERN_CODEC

size_t PlaneSpec::n_bytes() const {
  return static_cast<size_t>(*element_count(shape)) * static_cast<size_t>(dtype_bits(dtype)) / 8;
}

void Codec::copy_rows(std::span<const PlaneSpec> specs, const MutableCodes& from, int64_t row,
                      int64_t n_rows, const MutableCodes& to) const {
  for (size_t p = 0; p < specs.size(); ++p) {
    const int64_t slices = specs[p].shape[0];
    if (slices != from.n_out && slices != ceil_div(from.n_out, block_rows())) continue;
    const int64_t rows = slices == from.n_out ? 1 : block_rows();
    const size_t bytes = specs[p].n_bytes() / static_cast<size_t>(slices);
    const size_t begin = static_cast<size_t>(row / rows) * bytes;
    std::memcpy(to.planes[p] + begin, from.planes[p] + begin,
                static_cast<size_t>(ceil_div(n_rows, rows)) * bytes);
  }
}

void Decoder::decode_panels(const CodesView& codes, int64_t row, int64_t n_rows,
                            int64_t /*col: the tile is of whole rows*/, int64_t n_cols,
                            const MutablePanels& out) const {
  thread_local AlignedVector<float> values;
  values.resize(static_cast<size_t>(std::min(n_rows, kPanelRows) * n_cols));
  for (int64_t r = 0; r < n_rows; r += kPanelRows) {
    const int64_t height = std::min(kPanelRows, n_rows - r), panel = r / kPanelRows;
    decode(codes, row + r, height, values.data());
    kernels().quantize_panel(values.data(), height, n_cols, panel_tile(n_cols).group,
                             out.levels + panel * out.levels_stride,
                             out.scales + panel * out.scales_stride);
  }
}

std::span<const CodecInfo> codecs() {
  static const CodecInfo rows[] = {
#define QUERN_CODEC(name) name##_codec_info,
#include "codecs/list.inc"
#undef QUERN_CODEC
  };
  return rows;
}

Result<std::unique_ptr<Codec>> make_codec(const spec::Call& call) {
  return spec::make(codecs(), call, "codec");
}

Result<std::unique_ptr<Codec>> make_codec(std::string_view text) {
  QUERN_ASSIGN(const spec::Call call, spec::parse_call(text));
  return make_codec(call);
}

Result<CodedMatrix> CodedMatrix::create(const Decoder& codec, int64_t n_out, int64_t n_in) {
  CodedMatrix matrix;
  matrix.n_out_ = n_out;
  matrix.n_in_ = n_in;
  QUERN_ASSIGN(matrix.specs_, codec.planes(n_out, n_in));
  for (const PlaneSpec& plane : matrix.specs_) matrix.planes_.emplace_back(plane.n_bytes());
  return matrix;
}

CodesView CodedMatrix::view() const {
  CodesView codes{n_out_, n_in_, {}};
  for (const auto& plane : planes_) codes.planes.push_back(plane.data());
  return codes;
}

MutableCodes CodedMatrix::mutable_view() {
  MutableCodes codes{n_out_, n_in_, {}};
  for (auto& plane : planes_) codes.planes.push_back(plane.data());
  return codes;
}

size_t CodedMatrix::n_bytes() const {
  size_t total = 0;
  for (const PlaneSpec& plane : specs_) total += plane.n_bytes();
  return total;
}

}  // namespace quern
