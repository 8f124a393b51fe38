// SPDX-License-Identifier: Apache-2.0
// What the tests of cache codecs share: codecs by text, Gaussian pages, a page there and back.
#pragma once

#include <cmath>
#include <memory>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "kvcache/kv_cache.h"
#include "tensor/matrix.h"

namespace quern {

inline constexpr KvSide kSides[] = {KvSide::kKeys, KvSide::kValues};

inline std::unique_ptr<KvCodec> codec_of(std::string_view text) {
  return std::move(*make_kv_codec(*spec::parse_call(text)));
}

inline std::vector<float> gaussian_page(int64_t d_head, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(static_cast<size_t>(kKeyBlock * d_head));
  for (float& value : x) value = static_cast<float>(random.gaussian());
  return x;
}

inline Matrix<float> gaussian_rows(int64_t rows, int64_t cols, uint64_t seed) {
  Random random(seed);
  Matrix<float> x(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) x.data()[i] = static_cast<float>(random.gaussian());
  return x;
}

// The codec of one head, with tables of Gaussian numbers where it needs some.
inline std::shared_ptr<const KvCodec> ready_codec(std::string_view text, KvSide side,
                                                  int64_t d_head) {
  std::shared_ptr<const KvCodec> codec = codec_of(text);
  if (codec->tables() == KvTables::kNone) return codec;
  const Matrix<float> x = gaussian_rows(256, d_head, 99);
  const std::vector<double> weights(static_cast<size_t>(d_head), 1.0);
  const KvFitRows rows{side, 1, d_head, x.view(), weights};
  return *codec->with_tables(rows, 0, *codec->fit(rows));
}

// A shape with all that a recipe needs for one layer: angles, tables.
inline KvShape ready_shape(KvShape shape, int64_t capacity, const KvRecipe& recipe) {
  RopeDesc rope;
  rope.n_dims = static_cast<int>(shape.d_head);
  for (int j = 0; j < rope.n_dims / 2; ++j) rope.inv_freq.push_back(std::pow(.8, j));
  if (recipe.codes_unturned) shape.rope = std::make_shared<const KvRope>(rope, capacity);
  for (int64_t head = 0; head < shape.n_kv_heads && recipe.has_tables(); ++head) {
    shape.keys.push_back(ready_codec(recipe.keys->spec(), KvSide::kKeys, shape.d_head));
    shape.values.push_back(ready_codec(recipe.values->spec(), KvSide::kValues, shape.d_head));
  }
  return shape;
}

inline std::vector<float> coded(const KvCodec& codec, KvSide side, int64_t d_head,
                                const std::vector<float>& x) {
  std::vector<std::byte> page(static_cast<size_t>(codec.page_bytes(side, d_head)));
  codec.encode(side, d_head, x.data(), page.data());
  std::vector<float> y(x.size());
  KvScratchMemory scratch;
  const KvOperand read = codec.read(side, d_head, page.data(), nullptr, scratch.view(d_head));
  const float* floats = floats_of(read, kKeyBlock * d_head, y.data());
  std::copy_n(floats, y.size(), y.begin());
  return y;
}

}  // namespace quern
