// SPDX-License-Identifier: Apache-2.0
// A GGUF file (or the splits of one) as a Hugging Face checkpoint: tensors under Hugging Face's
// names, a config.json made from the metadata. Names and configs come from gguf_arch; this file
// undoes, row by row as values are read, what the conversion to GGUF did to the weights. A tensor
// that the architecture has no place for is an error: a model is read whole or not at all.

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "formats/checkpoint_readers.h"
#include "formats/ggml_blocks.h"
#include "formats/gguf.h"
#include "formats/gguf_arch.h"

namespace quern {
namespace {

constexpr int64_t kMaxSplits = 1000;

// What an entry's values are read from.
struct Source {
  TensorInfo stored;  // GGUF name, stored shape; one expert's part of a stack
  GgufTransform transform = GgufTransform::kNone;
};

class GgufCheckpoint final : public Checkpoint {
 public:
  // Of a file and its splits.
  Status open_file(const std::string& path);
  // Of an image that outlives this object.
  Status read_image(std::span<const std::byte> image);

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view name) const override {
    return find_tensor(tensors_, name);
  }
  Status read_rows(const TensorInfo& tensor, int64_t first_row, int64_t n_rows,
                   float* dst) const override;
  void release(const TensorInfo& tensor) const override;
  uint64_t file_bytes() const override {
    uint64_t total = 0;
    for (const auto& file : files_) total += file->file().bytes().size();
    return total;
  }

 private:
  Status open_splits(const std::string& path, GgufContents& whole);
  Status build(const GgufContents& file);
  Status add(const TensorInfo& stored, const GgufPlace& place);
  Status add_experts(const TensorInfo& stored, const std::string& pattern);
  Status read_unpermuted(const Source& source, int64_t n_heads, int64_t first_row, int64_t n_rows,
                         float* dst) const;

  std::vector<std::unique_ptr<GgufFile>> files_;
  std::vector<TensorInfo> tensors_;  // sorted by name
  std::vector<Source> sources_;      // of tensors_, entry by entry
  int64_t n_heads_ = 0, n_kv_heads_ = 0;
};

// Replaces "{}" of a name.
std::string with_expert(const std::string& pattern, int64_t expert) {
  const size_t at = pattern.find("{}");
  return pattern.substr(0, at) + std::to_string(expert) + pattern.substr(at + 2);
}

Status GgufCheckpoint::add_experts(const TensorInfo& stored, const std::string& pattern) {
  const int64_t n_experts = config_.value("num_local_experts", int64_t{0});
  if (stored.shape.size() != 3 || stored.shape[0] != n_experts) {
    return error("tensor '{}': shape {}, expected [{}, rows, cols]", stored.name,
                 to_string(stored.shape), n_experts);
  }
  Source source{stored, GgufTransform::kNone};
  source.stored.shape.erase(source.stored.shape.begin());
  source.stored.n_bytes = stored.n_bytes / static_cast<size_t>(n_experts);
  for (int64_t expert = 0; expert < n_experts; ++expert) {
    TensorInfo entry = source.stored;
    entry.name = with_expert(pattern, expert);
    tensors_.push_back(entry);
    sources_.push_back(source);
    source.stored.bytes += source.stored.n_bytes;
  }
  return {};
}

Status GgufCheckpoint::add(const TensorInfo& stored, const GgufPlace& place) {
  if (place.transform == GgufTransform::kExperts) return add_experts(stored, place.name);
  Source source{stored, place.transform};
  TensorInfo entry = stored;
  entry.name = place.name;
  const bool is_matrix = stored.shape.size() == 2;
  if (stored.shape.size() > 2) {
    return error("tensor '{}': shape {}, expected a matrix or a vector", stored.name,
                 to_string(stored.shape));
  }
  if (place.transform == GgufTransform::kTranspose) {
    if (is_matrix)
      std::swap(entry.shape[0], entry.shape[1]);
    else
      source.transform = GgufTransform::kNone;
  }
  if (place.transform == GgufTransform::kUnpermuteQ ||
      place.transform == GgufTransform::kUnpermuteK) {
    const int64_t n_heads = place.transform == GgufTransform::kUnpermuteQ ? n_heads_ : n_kv_heads_;
    const int64_t n = stored.shape[0];
    if (n % n_heads != 0 || n / n_heads % 2 != 0) {
      return error("tensor '{}': {} rows, expected {} heads of even size", stored.name, n, n_heads);
    }
  }
  tensors_.push_back(std::move(entry));
  sources_.push_back(std::move(source));
  return {};
}

// Tensors that only say how the rotary embedding is scaled; the config carries that.
bool is_rope_table(std::string_view name) {
  return name == "rope_freqs.weight" || name == "rope_factors_long.weight" ||
         name == "rope_factors_short.weight";
}

Status GgufCheckpoint::build(const GgufContents& file) {
  QUERN_ASSIGN(const GgufArch* arch, find_gguf_arch(file.metadata));
  QUERN_ASSIGN(config_, make_gguf_config(*arch, file));
  // make_gguf_config has checked these.
  const auto size_of = [&](const std::string& key) {
    return *file.metadata.integer_or(fmt::format("{}.{}", arch->name, key), 1, INT64_MAX, 1);
  };
  const int64_t n_layers = size_of("block_count");
  n_heads_ = config_.value("num_attention_heads", int64_t{1});
  n_kv_heads_ = config_.value("num_key_value_heads", n_heads_);
  for (const TensorInfo& stored : file.tensors) {
    if (is_rope_table(stored.name)) continue;
    const std::optional<GgufPlace> place = place_gguf_tensor(*arch, stored.name, n_layers);
    if (!place) {
      return error("tensor '{}' has no place in architecture '{}' of {} layers", stored.name,
                   arch->name, n_layers);
    }
    QUERN_TRY(add(stored, *place));
  }
  std::vector<size_t> order(tensors_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return tensors_[a].name < tensors_[b].name; });
  std::vector<TensorInfo> tensors;
  std::vector<Source> sources;
  for (const size_t i : order) {
    if (!tensors.empty() && tensors.back().name == tensors_[i].name) {
      return error("tensor '{}' is stored twice", tensors_[i].name);
    }
    tensors.push_back(std::move(tensors_[i]));
    sources.push_back(std::move(sources_[i]));
  }
  tensors_ = std::move(tensors);
  sources_ = std::move(sources);
  return {};
}

// "x-00001-of-00003.gguf" -> the name of split `index` (from 0); "" if the path is not so named.
std::string split_path(const std::string& path, int64_t index, int64_t count) {
  const std::string first = fmt::format("-{:05}-of-{:05}.gguf", 1, count);
  if (!path.ends_with(first)) return "";
  return fmt::format("{}-{:05}-of-{:05}.gguf", path.substr(0, path.size() - first.size()),
                     index + 1, count);
}

Status GgufCheckpoint::open_splits(const std::string& path, GgufContents& whole) {
  QUERN_ASSIGN(const int64_t count, whole.metadata.integer_or("split.count", 0, kMaxSplits, 1));
  if (count <= 1) return {};
  QUERN_ASSIGN(const int64_t number, whole.metadata.integer("split.no", 0, count - 1));
  if (number != 0 || split_path(path, 0, count).empty()) {
    return error("split {} of {}; name the first file, '...-00001-of-{:05}.gguf'", number + 1,
                 count, count);
  }
  for (int64_t i = 1; i < count; ++i) {
    QUERN_ASSIGN(auto file, GgufFile::open(split_path(path, i, count)));
    QUERN_ASSIGN(const int64_t its_number, file->metadata().integer("split.no", 0, count - 1));
    QUERN_ASSIGN(const int64_t its_count, file->metadata().integer("split.count", 0, kMaxSplits));
    if (its_number != i || its_count != count) {
      return error("{}: says split {} of {}, expected {} of {}", file->file().path(),
                   its_number + 1, its_count, i + 1, count);
    }
    whole.tensors.insert(whole.tensors.end(), file->tensors().begin(), file->tensors().end());
    files_.push_back(std::move(file));
  }
  const int64_t n_tensors = static_cast<int64_t>(whole.tensors.size());
  QUERN_ASSIGN(const int64_t expected,
               whole.metadata.integer_or("split.tensors.count", 0, INT64_MAX, n_tensors));
  if (expected != n_tensors) {
    return error("{} splits hold {} tensors, expected {}", count, n_tensors, expected);
  }
  return {};
}

Status GgufCheckpoint::open_file(const std::string& path) {
  path_ = path;
  QUERN_ASSIGN(auto file, GgufFile::open(path));
  GgufContents whole = file->contents();
  files_.push_back(std::move(file));
  Status status = open_splits(path, whole);
  if (status) status = build(whole);
  if (!status) return error("{}: {}", path, status.error().message);
  return {};
}

Status GgufCheckpoint::read_image(std::span<const std::byte> image) {
  path_ = "memory";
  QUERN_ASSIGN(const GgufContents contents, parse_gguf(image));
  QUERN_ASSIGN(const int64_t count, contents.metadata.integer_or("split.count", 0, kMaxSplits, 1));
  if (count > 1) return error("gguf: one of {} splits", count);
  return build(contents);
}

// HF row h d + s d/2 + j of a head of d rows is stored as row h d + 2 j + s.
Status GgufCheckpoint::read_unpermuted(const Source& source, int64_t n_heads, int64_t first_row,
                                       int64_t n_rows, float* dst) const {
  const TensorInfo& stored = source.stored;
  const int64_t d = stored.shape[0] / n_heads;
  const auto stored_row = [d](int64_t row) {
    const int64_t within = row % d, half = d / 2;
    return row - within + 2 * (within % half) + within / half;
  };
  if (stored.shape.size() == 1) {
    if (n_rows == 0) return {};
    std::vector<float> values(static_cast<size_t>(stored.shape[0]));
    QUERN_TRY(read_ggml_rows(stored, 0, 1, values.data()));
    for (int64_t i = 0; i < stored.shape[0]; ++i) {
      dst[i] = values[static_cast<size_t>(stored_row(i))];
    }
    return {};
  }
  const int64_t cols = matrix_cols(stored);
  for (int64_t i = 0; i < n_rows; ++i) {
    QUERN_TRY(read_ggml_rows(stored, stored_row(first_row + i), 1, dst + i * cols));
  }
  return {};
}

Status GgufCheckpoint::read_rows(const TensorInfo& tensor, int64_t first_row, int64_t n_rows,
                                 float* dst) const {
  const TensorInfo* entry = find(tensor.name);
  if (entry == nullptr) return error("{}: no tensor '{}'", path_, tensor.name);
  QUERN_TRY(check_row_range(*entry, first_row, n_rows));
  const Source& source = sources_[static_cast<size_t>(entry - tensors_.data())];
  switch (source.transform) {
    case GgufTransform::kUnpermuteQ:
      return read_unpermuted(source, n_heads_, first_row, n_rows, dst);
    case GgufTransform::kUnpermuteK:
      return read_unpermuted(source, n_kv_heads_, first_row, n_rows, dst);
    case GgufTransform::kTranspose:
      return read_ggml_cols(source.stored, first_row, n_rows, dst);
    case GgufTransform::kGainMinusOne:
      QUERN_TRY(read_ggml_rows(source.stored, first_row, n_rows, dst));
      for (int64_t i = 0; i < n_rows * matrix_cols(*entry); ++i) dst[i] -= 1.0f;
      return {};
    case GgufTransform::kNone:
    case GgufTransform::kExperts:
      break;
  }
  return read_ggml_rows(source.stored, first_row, n_rows, dst);
}

void GgufCheckpoint::release(const TensorInfo& tensor) const {
  for (const auto& file : files_) {
    const std::span<const std::byte> bytes = file->file().bytes();
    if (tensor.bytes < bytes.data() || tensor.bytes >= bytes.data() + bytes.size()) continue;
    file->file().release(static_cast<size_t>(tensor.bytes - bytes.data()), tensor.n_bytes);
    return;
  }
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> read_gguf_checkpoint(std::span<const std::byte> image) {
  auto checkpoint = std::make_unique<GgufCheckpoint>();
  QUERN_TRY(checkpoint->read_image(image));
  return checkpoint;
}

Result<std::unique_ptr<Checkpoint>> open_checkpoint_file(const std::string& path) {
  if (const std::string advice = pickle_advice(path); !advice.empty()) return error("{}", advice);
  if (path.ends_with(".safetensors")) {
    return error("{}: a tensor file alone is no model; name the directory that holds it", path);
  }
  auto checkpoint = std::make_unique<GgufCheckpoint>();
  QUERN_TRY(checkpoint->open_file(path));
  return checkpoint;
}

}  // namespace quern
