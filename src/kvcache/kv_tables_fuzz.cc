// SPDX-License-Identifier: Apache-2.0
// Any bytes as tables of caches: refused, or each kind that reads them takes or refuses them, and
// what takes them can be used.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "kvcache/kv_cache.h"
#include "kvcache/kv_testing.h"

namespace quern {
namespace {

const KvHeads kHeads{4, 2, 6};
constexpr int64_t kRows = 3;

void use_maps(const KvFeatureMaps& maps) {
  const Matrix<float> x = gaussian_rows(kRows, kHeads.d_head, 1);
  Matrix<float> features(kRows, maps.n_features());
  KvAbsorbed state(kHeads.n_kv_heads, maps.n_features(), kHeads.d_head);
  for (int64_t head = 0; head < kHeads.n_kv_heads; ++head) {
    maps.psi(head, x.view(), features.data());
    for (int64_t i = 0; i < kRows; ++i) state.add(head, features.row(i), x.row(i));
  }
  std::vector<float> out(static_cast<size_t>(kHeads.d_head));
  for (int64_t head = 0; head < kHeads.n_heads; ++head) {
    maps.phi(head, x.view(), features.data());
    for (int64_t i = 0; i < kRows; ++i) state.merge(head / 2, features.row(i), 0, out.data());
  }
}

void use_merge(const KvMerge& merge) {
  const Matrix<float> q = gaussian_rows(kRows, kHeads.n_heads * kHeads.d_head, 2);
  const Matrix<float> k = gaussian_rows(kRows, kHeads.n_kv_heads * kHeads.d_head, 3);
  std::vector<uint8_t> joins(static_cast<size_t>(kRows * kHeads.n_kv_heads));
  std::vector<float> weights(joins.size());
  merge.decide(kHeads, q.view(), k.view(), joins.data(), weights.data());
  for (const float weight : weights) QUERN_CHECK(!(weight <= 0));
}

}  // namespace
}  // namespace quern

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const auto tables = KvTableSet::parse(std::as_bytes(std::span(data, size)));
  if (!tables) {
    QUERN_CHECK(!tables.error().message.empty());
    return 0;
  }
  if (const auto maps = KvFeatureMaps::load(*tables, 0, kHeads)) use_maps(**maps);
  for (const KvMergeInfo& info : kv_merges()) {
    for (const std::string_view example : info.examples) {
      const auto merge = *make_kv_merge(*spec::parse_call(example));
      if (!merge->has_tables()) continue;
      if (const auto bound = merge->with_tables(*tables, 0, kHeads)) use_merge(**bound);
    }
  }
  const auto nuq = make_kv_codec(*spec::parse_call("nuq(2)"));
  static_cast<void>(tables->codecs(0, {KvSide::kKeys, 2, kHeads.d_head, {}, {}}, **nuq));
  return 0;
}
