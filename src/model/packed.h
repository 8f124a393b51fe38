// SPDX-License-Identifier: Apache-2.0
// The `quantization_config` that quern writes into config.json, and how coded matrices are named.
// docs/format.md specifies both. A matrix `x.weight` is stored as one tensor per plane of its
// codec, `x.weight.codes`, `x.weight.scales`, ..., whose types and shapes must equal those the
// codec states for the matrix's size.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "activations/act_quantizer.h"
#include "base/status.h"
#include "codecs/codec.h"
#include "formats/checkpoint.h"
#include "transforms/basis.h"

namespace quern {

constexpr int64_t kFormatVersion = 1;

struct PackedTensor {
  std::shared_ptr<const Codec> codec;
  int64_t n_out = 0, n_in = 0;
  double error = 0;                         // layer_loss, normalised, as measured when it was coded
  std::shared_ptr<const ActQuantizer> act;  // of its inputs; null: the reader's choice
};

struct Packed {
  std::string recipe;  // canonical; empty: not a model that quern wrote
  std::string recipe_digest, source_digest, quern_version;
  uint64_t seed = 0;
  Json calibration = Json::object();  // {"digest", "tokens", "text", "runs"}
  BasisChange basis;
  std::map<std::string, PackedTensor> tensors;  // by weight name

  bool empty() const { return recipe.empty(); }
  Json to_json() const;
  // From a whole config.json. No quantization_config: empty. Another tool's is refused by name.
  // `find` looks up tensors of the model's files, for operators with dense data.
  static Result<Packed> from_config(const Json& config, const FindTensor& find = nullptr);
};

std::string plane_name(const std::string& weight, const PlaneSpec& plane);
// The tensor that holds the ranges of a static rounding of inputs: F32 [n_ranges].
std::string ranges_name(const std::string& weight);

// The planes of a coded matrix in a checkpoint, with types and shapes checked.
Result<CodesView> find_codes(const Checkpoint& checkpoint, const std::string& weight,
                             const PackedTensor& tensor);
// How the inputs of a coded matrix are rounded, its ranges checked; null where nothing is said.
Result<std::shared_ptr<const ActRounding>> find_rounding(const Checkpoint& checkpoint,
                                                         const std::string& weight,
                                                         const PackedTensor& tensor);
// The same from the tensor of its ranges, which is null where a file has none of this name.
Result<std::shared_ptr<const ActRounding>> read_rounding(std::shared_ptr<const ActQuantizer> act,
                                                         int64_t n_in, const TensorInfo* ranges,
                                                         const std::string& name);
// Says that these will not be needed soon.
void release_codes(const Checkpoint& checkpoint, const std::string& weight,
                   const PackedTensor& tensor);

}  // namespace quern
