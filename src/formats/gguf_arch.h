// SPDX-License-Identifier: Apache-2.0
// What quern knows of the architectures that GGUF files name: the Hugging Face spelling of their
// tensors and of their hyper-parameters. One row per architecture; a new one is a row.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "formats/gguf.h"

namespace quern {

// How stored values become Hugging Face's.
enum class GgufTransform : uint8_t {
  kNone,
  kUnpermuteQ,  // rows of each head interleaved (0, d/2, 1, d/2 + 1, ...); HF keeps halves
  kUnpermuteK,
  kGainMinusOne,  // stored gain, HF keeps gain - 1
  kTranspose,     // a matrix HF keeps as [n_in, n_out]; vectors are unchanged
  kExperts,       // [n_experts, rows, cols], HF keeps one matrix per expert
};

struct GgufTensorRule {
  std::string_view stem;  // "attn_q" of "blk.0.attn_q.weight", or "token_embd"
  std::string_view name;  // HF stem under the layer (or whole); "{}" is the expert
  GgufTransform transform = GgufTransform::kNone;
};

struct GgufArch {
  std::string_view name;  // general.architecture
  bool is_moe = false;    // the row for files with experts
  std::string_view architecture, model_type;
  std::string_view layer_prefix;  // HF: "model.layers."
  std::span<const GgufTensorRule> whole, layer;
  // Adds what is particular to the architecture to the config.
  Status (*finish)(const GgufContents& file, Json& config) = nullptr;
};

// The row for a file; the error lists the architectures that are known.
Result<const GgufArch*> find_gguf_arch(const GgufMetadata& metadata);

// Where a GGUF tensor goes; nothing if the architecture has no place for it.
struct GgufPlace {
  std::string name;  // HF name; "{}" stays where the expert's number goes
  GgufTransform transform = GgufTransform::kNone;
};
std::optional<GgufPlace> place_gguf_tensor(const GgufArch& arch, std::string_view name,
                                           int64_t n_layers);

// config.json made from the metadata (and the shapes and presence of tensors).
Result<Json> make_gguf_config(const GgufArch& arch, const GgufContents& file);

// The tensor of that name, null if absent. Linear: for a handful of questions per file.
const TensorInfo* find_gguf_tensor(const GgufContents& file, std::string_view name);

}  // namespace quern
