// SPDX-License-Identifier: Apache-2.0
// Any bytes as a saved cache: refused, or a cache that can be read and grown.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "kvcache/kv_file.h"
#include "kvcache/kv_testing.h"

namespace quern {
namespace {

constexpr int64_t kDims = 16;
const KvShape kShape = {1, kDims};
constexpr int64_t kRoom = 256;

bool is_finite(const KvOperand& operand) {
  constexpr int64_t kNumbers = kKeyBlock * kDims;
  static AlignedVector<float> floats(kNumbers);
  return std::isfinite(floats_of(operand, kNumbers, floats.data())[0]);
}

// Every slot of the one head is read.
void read_all(const LayerKv& layer, int64_t coded) {
  KvScratchMemory memory;
  for (int64_t p = 0; p < layer.n_slots(); p += kKeyBlock) {
    const LayerKv::Codes codes(layer, 0);
    const LayerKv::Exact exact(layer, 0);
    const KvBlocks& blocks = p < coded ? static_cast<const KvBlocks&>(codes) : exact;
    const KvScratch scratch = memory.view(kShape.d_head);
    QUERN_CHECK(is_finite(blocks.keys(p / kKeyBlock, scratch)));
    QUERN_CHECK(is_finite(blocks.values(p / kKeyBlock, scratch)));
  }
}

void grow_merged(KvMergedHead& head, int64_t position, int64_t n) {
  read_all(head.slots, 0);
  Matrix<float> rows(2, kDims);
  for (int64_t i = 0; i < n; ++i) {
    head.open.add(i % 3 == 0, 1, rows.row(0), rows.row(1));
    const MatrixView<const float> k = rows.view().row_range(0, 1), v = rows.view().row_range(1, 1);
    if (i % 3 == 0) {
      head.start(position + i, k, v);
    } else {
      head.join(position + i, k, v);
    }
  }
}

void use(KvCache& cache) {
  LayerKv& layer = cache.layer(0);
  const int64_t n = std::min<int64_t>(70, kRoom - cache.length());
  if (layer.merge() != nullptr) {
    grow_merged(layer.merged()[0], cache.length(), n);
  } else {
    read_all(layer, layer.coded_before(cache.length() - 1));
    const Matrix<float> rows(n, kDims);
    layer.put(cache.length(), rows.view(), rows.view());
  }
  cache.advance(n);
  const bool may_evict = layer.policy() != nullptr &&
                         (layer.slots().is_open || layer.policy()->n_prompt_queries() == 0);
  if (may_evict) layer.evict();
  for (const KvStateTensor& tensor : layer.state()) QUERN_CHECK(!tensor.name.empty());
}

}  // namespace
}  // namespace quern

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const auto file = KvFile::parse(std::as_bytes(std::span(data, size)));
  if (!file) {
    QUERN_CHECK(!file.error().message.empty());
    return 0;
  }
  // Whatever recipe the file names that is cheap to make.
  const auto recipe = KvRecipe::parse(file->kv());
  if (!recipe || !recipe->check(kShape.d_head)) return 0;
  if (recipe->has_tables()) return 0;  // they take a while
  KvCache cache({ready_shape(kShape, kRoom, *recipe)}, kRoom, *recipe);
  if (file->load(cache)) use(cache);
  return 0;
}
