// SPDX-License-Identifier: Apache-2.0
#include "codecs/pulses.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <span>

#include "base/checked.h"
#include "base/parallel.h"
#include "codecs/bit_stream.h"
#include "codecs/interleaved.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr int64_t kRows = 16;  // of a piece of work
constexpr int kLargest = 127;

class PulsesDecoder final : public Decoder {
 public:
  PulsesDecoder(int bits, int64_t dim) : bits_(bits), dim_(dim) {}

  std::string spec() const override { return fmt::format("pulses({}, dim={})", bits_, dim_); }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    return std::vector<PlaneSpec>{{"codes", DType::kU8, {n_out, stream_bytes(n_in, bits_)}},
                                  {"steps", DType::kF32, {n_out, ceil_div(n_in, dim_)}}};
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    const auto decode_row =
        kernels().isa == Isa::kAvx512 && dim_ % 8 == 0 ? pulses_decode_avx512 : pulses_decode_ref;
    const int64_t bytes = stream_bytes(codes.n_in, bits_), groups = ceil_div(codes.n_in, dim_);
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      decode_row(
          {reinterpret_cast<const uint8_t*>(codes.planes[0]) + i * bytes,
           reinterpret_cast<const float*>(codes.planes[1]) + i * groups, bits_, dim_, codes.n_in},
          dst);
    }
  }

 private:
  int bits_;
  int64_t dim_;
};

}  // namespace

std::shared_ptr<const RuntimeForm> pulses_form(
    int64_t n_out, int64_t n_in, int64_t dim, Reading reading,
    const std::function<void(int64_t row, int16_t* y, float* steps)>& read) {
  const int64_t groups = ceil_div(n_in, dim);
  Matrix<uint8_t> points(n_out, n_in);  // y + 128
  Matrix<float> steps(n_out, groups);
  std::vector<int> largest(static_cast<size_t>(n_out));
  parallel_for(n_out, kRows, [&](int64_t begin, int64_t end) {
    std::vector<int16_t> y(static_cast<size_t>(n_in));
    for (int64_t i = begin; i < end; ++i) {
      read(i, y.data(), steps.row(i));
      for (size_t j = 0; j < y.size(); ++j) {
        largest[static_cast<size_t>(i)] = std::max(largest[static_cast<size_t>(i)], std::abs(y[j]));
        points.row(i)[j] = static_cast<uint8_t>(y[j] + 128);
      }
    }
  });
  const auto most = static_cast<unsigned>(*std::max_element(largest.begin(), largest.end()));
  if (most > kLargest) return nullptr;
  const int bits = std::max(2, 1 + static_cast<int>(std::bit_width(most)));
  const int zero = 1 << (bits - 1);
  parallel_for(n_out, kRows, [&](int64_t begin, int64_t end) {
    for (uint8_t& y : std::span(points.row(begin), points.row(end))) {
      y = static_cast<uint8_t>(y - 128 + zero);
    }
  });
  if (reading == Reading::kPanels) {
    InterleavedSource source;
    source.spec = fmt::format("pulses({}, dim={})", bits, dim);
    source.n_out = n_out;
    source.rows = {points.data(), nullptr, 8, 0, n_in};
    source.bits = bits;
    source.group = dim;
    source.set_integers(zero);
    source.read_scales = [&](int64_t row, float* scales) {
      std::copy_n(steps.row(row), groups, scales);
    };
    if (auto form = interleave(source)) return form;
  }
  auto form = std::make_shared<RuntimeForm>();
  form->decoder = std::make_unique<PulsesDecoder>(bits, dim);
  form->codes = *CodedMatrix::create(*form->decoder, n_out, n_in);
  const MutableCodes codes = form->codes.mutable_view();
  std::copy_n(steps.data(), n_out * groups, reinterpret_cast<float*>(codes.planes[1]));
  parallel_for(n_out, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      auto* stream = reinterpret_cast<uint8_t*>(codes.planes[0]) + i * stream_bytes(n_in, bits);
      for (int64_t j = 0; j < n_in; ++j) put_code(stream, j, bits, points(i, j));
    }
  });
  return form;
}

void pulses_decode_ref(const PulsesRow& row, float* dst) {
  const int zero = 1 << (row.bits - 1);
  for (int64_t j = 0; j < row.n; ++j) {
    const int y = static_cast<int>(get_code(row.codes, j, row.bits)) - zero;
    dst[j] = row.steps[j / row.dim] * static_cast<float>(y);
  }
}

}  // namespace quern
