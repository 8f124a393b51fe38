// SPDX-License-Identifier: Apache-2.0
// The weights of a model by role. Opening a store checks that every tensor the description implies
// exists with exactly the implied shape; after that no size in the file is trusted again.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "formats/checkpoint.h"
#include "model/archs/arch.h"
#include "model/layer_desc.h"
#include "model/packed.h"
#include "model/roles.h"
#include "tensor/matrix.h"

namespace quern {

// [n_out, n_in] of a matrix, [n] of a vector (norms).
Shape weight_shape(const ModelDesc& model, const WeightId& id);
// Whether the description has the weight, or its bias. A tied head is not a weight of its own.
bool has_weight(const ModelDesc& model, const WeightId& id, Part part = Part::kWeight);
// Calls `visit` for each weight (or lone bias, of a tied head) in the order of a forward pass,
// stopping at the first error:
// embed, pos_embed; per layer attn_norm, q, k, v, q_norm, k_norm, o, attn_post_norm, mlp_norm,
// router, gate, up, down (of each expert in turn), shared expert, mlp_post_norm; final_norm,
// lm_head.
Status for_each_weight(const ModelDesc& model, const std::function<Status(const WeightId&)>& visit);
std::vector<WeightId> weight_ids(const ModelDesc& model);
int64_t count_parameters(const ModelDesc& model);  // biases included

class WeightStore {
 public:
  static Result<WeightStore> open(const std::string& path);
  static Result<WeightStore> open(std::shared_ptr<const Checkpoint> checkpoint);

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const Arch& arch() const { return *arch_; }
  const ModelDesc& model() const { return model_; }
  const std::vector<WeightId>& weight_ids() const { return ids_; }
  // Biases included; and of the model before a change of basis gave it another form.
  int64_t parameter_count() const { return n_parameters_; }
  int64_t original_parameter_count() const { return n_original_; }

  bool exists(const WeightId& id, Part part = Part::kWeight) const {
    return has_weight(model_, id, part);
  }
  Shape shape(const WeightId& id) const { return weight_shape(model_, id); }

  // Whether stored bytes are the weights' values in their order, as in directories; a GGUF file may
  // permute rows or transpose, and is read by values only.
  bool is_in_order() const { return is_in_order_; }

  // Codes and basis of a model that quern wrote; empty for any other.
  const Packed& packed() const { return packed_; }
  // The weight's entry among the coded ones; null if it is stored densely.
  const PackedTensor* coded(const WeightId& id) const;
  // The weight's name in a model that quern writes: the stored tensor's where the weight is all of
  // it, else one of its own.
  std::string stored_name(const WeightId& id, Part part = Part::kWeight) const;

  // The whole weight, [n_out, n_in]; vectors and biases are one row.
  Result<Matrix<float>> load(const WeightId& id, Part part = Part::kWeight) const;
  // Rows [first, first + n) of a matrix: dst[n, n_in].
  Status load_rows(const WeightId& id, int64_t first, int64_t n, float* dst) const;

  // The stored tensor where the weight is the whole of one, in order, and so can be used as it
  // lies on disk; else null. Always null for a GGUF file, which may keep rows in another order.
  const TensorInfo* direct(const WeightId& id, Part part = Part::kWeight) const;
  // The stored tensor that holds the weight, perhaps among others.
  const TensorInfo& stored(const WeightId& id, Part part = Part::kWeight) const;

 private:
  WeightStore() = default;
  const TensorInfo* find(const WeightSource& source) const;
  WeightSource locate(const WeightId& id, Part part) const;
  Status check(const WeightId& id, Part part) const;
  Status gather_columns(const TensorInfo& tensor, const WeightSource& source, int64_t first,
                        MatrixView<float> dst) const;

  std::shared_ptr<const Checkpoint> checkpoint_;
  const Arch* arch_ = nullptr;
  ModelDesc model_;
  Packed packed_;
  std::vector<WeightId> ids_;
  int64_t n_parameters_ = 0, n_original_ = 0;
  bool is_in_order_ = false;  // a directory of safetensors: bytes lie as read_rows gives them
};

}  // namespace quern
