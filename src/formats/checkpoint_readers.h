// SPDX-License-Identifier: Apache-2.0
// The readers behind Checkpoint::open.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "formats/checkpoint.h"

namespace quern {

// A directory with config.json and model.safetensors, or shards and their index.
Result<std::unique_ptr<Checkpoint>> open_hf_checkpoint(const std::string& directory);

// A single file: GGUF by its magic (with its splits); everything else is refused with advice.
Result<std::unique_ptr<Checkpoint>> open_checkpoint_file(const std::string& path);

// A GGUF image in memory, which must outlive the checkpoint.
Result<std::unique_ptr<Checkpoint>> read_gguf_checkpoint(std::span<const std::byte> image);

// Why a file of this name cannot be read, if it is a pickle: "" otherwise.
std::string pickle_advice(const std::string& path);

// [first_row, first_row + n_rows) lies inside the tensor.
Status check_row_range(const TensorInfo& tensor, int64_t first_row, int64_t n_rows);

}  // namespace quern
