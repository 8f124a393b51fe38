// SPDX-License-Identifier: Apache-2.0
// The one description of a decoder. An architecture is a function from config.json to this; the
// reference forward, the runtime, the fusing pass and the calibration read nothing else.
//
//   h = embed_scale * E[token] (+ P[position + pos_offset])
//   serial layer:    h += post_a( attention( norm_a(h) ) );  h += post_m( mlp( norm_m(h) ) )
//   parallel layer:  h += attention( norm_a(h) ) + mlp( norm_m(h) )
//   logits = soft_cap( lm_head( norm_f(h) ) + b )
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/activation.h"

namespace quern {

enum class NormKind : uint8_t { kNone, kRms, kLayer };

// kRms:   x / rms(x) * (gain + gain_offset)
// kLayer: (x - mean) / std * gain + bias
struct NormDesc {
  NormKind kind = NormKind::kNone;
  double eps = 1e-5;
  double gain_offset = 0;  // 1 where checkpoints store gain - 1 (Gemma)
  bool has_bias = false;
  bool operator==(const NormDesc&) const = default;
};

enum class PositionKind : uint8_t { kNone, kRope, kLearned };

// Rotary embedding of the first `n_dims` dimensions of each head, split halves: dimension j turns
// with dimension j + n_dims / 2 by angle position * inv_freq[j]; the rotated vectors are
// multiplied by `magnitude` (yarn, longrope). Scaling is already inside inv_freq.
struct RopeDesc {
  int n_dims = 0;                     // 0: no rotation
  std::vector<double> inv_freq;       // [n_dims / 2]
  std::vector<double> inv_freq_long;  // [n_dims / 2], used when the context in use is longer
  int64_t original_context = 0;       // than this (longrope); empty elsewhere
  double magnitude = 1;
  bool operator==(const RopeDesc&) const = default;
};

struct AttentionDesc {
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  int64_t d_head = 0;
  double scale = 0;     // scores = scale * q.k, usually 1 / sqrt(d_head)
  double soft_cap = 0;  // 0: none; else cap * tanh(score / cap)
  int64_t window = 0;   // 0: all; else a query sees the last `window` positions, itself included
  bool qkv_bias = false;
  bool o_bias = false;
  NormDesc qk_norm;  // per head, before RoPE; kNone if absent
  RopeDesc rope;
  bool operator==(const AttentionDesc&) const = default;
};

struct MlpDesc {
  int64_t d_ffn = 0;
  Activation activation = Activation::kSilu;
  bool gated = true;  // act(gate x) * (up x), else act(up x)
  bool bias = false;
  // Mixture of experts; n_experts 0 means dense.
  int64_t n_experts = 0;
  int64_t top_k = 0;
  bool renormalise = false;    // top-k softmax weights divided by their sum
  int64_t d_ffn_shared = 0;    // 0: no shared expert
  bool shared_router = false;  // shared expert times sigmoid(shared_router x)
  bool operator==(const MlpDesc&) const = default;
};

struct LayerDesc {
  AttentionDesc attention;
  MlpDesc mlp;
  NormDesc attn_norm, attn_post_norm, mlp_norm, mlp_post_norm;
  bool parallel = false;  // attention and MLP both read the layer's input
  // Widths of the stream where directions were cut off it (SliceGPT): before attention, before the
  // MLP, behind the layer. A matrix then takes the stream past attention, another past the MLP (one
  // past both in a parallel layer), and norms still divide by d_model. 0: not cut.
  int64_t d_in = 0, d_mid = 0, d_out = 0;
  bool is_sliced() const { return d_in > 0; }
  bool operator==(const LayerDesc&) const = default;
};

struct ModelDesc {
  std::string arch;  // row of model/archs
  int64_t d_model = 0;
  int64_t n_vocab = 0;
  int64_t n_context = 0;  // longest context the checkpoint was made for
  std::vector<LayerDesc> layers;
  NormDesc final_norm;
  PositionKind positions = PositionKind::kRope;
  int64_t n_positions = 0;  // rows of the learned position table
  int64_t pos_offset = 0;   // row of position 0 in it
  double embed_scale = 1;
  double logit_soft_cap = 0;
  bool tied_head = false;
  bool head_bias = false;
  std::vector<int32_t> eos;  // ids that end a text
  int32_t bos = -1;          // -1: none
  bool operator==(const ModelDesc&) const = default;

  int64_t width_in(const LayerDesc& layer) const { return layer.d_in > 0 ? layer.d_in : d_model; }
  int64_t width_mid(const LayerDesc& layer) const {  // what the MLP reads
    if (layer.parallel) return width_in(layer);
    return layer.d_mid > 0 ? layer.d_mid : d_model;
  }
  int64_t width_out(const LayerDesc& layer) const {
    return layer.d_out > 0 ? layer.d_out : d_model;
  }
  int64_t width_embed() const { return layers.empty() ? d_model : width_in(layers[0]); }
};

}  // namespace quern
