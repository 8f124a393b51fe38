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
  const KvFitRows rows{side, 1, d_head, x.view(), {}};
  return *codec->with_tables(rows, 0, *codec->fit(rows));
}

// Trained parameters of a layer that no training made: Gaussian numbers.
inline KvTableSet untrained_tables(const KvHeads& heads) {
  constexpr int64_t kHidden = 5, kFeatures = 3;
  const int64_t d = heads.d_head, n = heads.n_kv_heads;
  KvTableSet tables;
  const auto put = [&](const char* name, const Shape& shape) {
    const Matrix<float> x = gaussian_rows(1, *element_count(shape), 7);
    tables.put(0, name, shape, {x.data(), x.data() + x.cols()});
  };
  put("less.query_in", {1, kHidden, d});
  put("less.query_out", {1, kFeatures, kHidden});
  put("less.key_in", {n, kHidden, d});
  put("less.key_out", {n, kFeatures, kHidden});
  put("less.key_mix", {n, kFeatures, kFeatures});
  put("less.key_scale", {n, kFeatures});
  put("less.key_mix_scale", {n, kFeatures});
  put("dmc.merge", {n, d + 1});
  put("dmc.weight", {heads.n_heads, d + 1});
  return tables;
}

// A shape with all that a recipe needs for one layer: angles, tables.
inline KvShape ready_shape(KvShape shape, int64_t capacity, const KvRecipe& recipe) {
  RopeDesc rope;
  rope.n_dims = static_cast<int>(shape.d_head);
  for (int j = 0; j < rope.n_dims / 2; ++j) rope.inv_freq.push_back(std::pow(.8, j));
  if (recipe.codes_unturned) shape.rope = std::make_shared<const KvRope>(rope, capacity);
  const KvHeads heads{shape.n_kv_heads, shape.n_kv_heads, shape.d_head};
  if (recipe.absorbs()) {
    shape.maps = *KvFeatureMaps::load(untrained_tables(heads), 0, heads);
  }
  shape.merge = recipe.merge;
  if (recipe.merge != nullptr && recipe.merge->has_tables()) {
    shape.merge = *recipe.merge->with_tables(untrained_tables(heads), 0, heads);
  }
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
