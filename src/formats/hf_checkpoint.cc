// SPDX-License-Identifier: Apache-2.0
// A Hugging Face model directory: config.json beside model.safetensors, or beside shards that
// model.safetensors.index.json maps. The index is untrusted: shard names are plain file names of
// the directory, and what they resolve to stays inside it (or inside the `blobs` folder of the
// Hugging Face cache, whose snapshots are links). The index defines the checkpoint: tensors of a
// shard that it does not map are not part of it.

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "base/file.h"
#include "formats/checkpoint_readers.h"
#include "formats/float8.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace quern {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxConfig = size_t{64} << 20;
constexpr size_t kMaxIndex = size_t{256} << 20;
constexpr size_t kMaxShards = 10'000;
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

class HfCheckpoint final : public Checkpoint {
 public:
  Status load(const std::string& directory);

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
  Status load_shards(const std::string& index_path);

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<TensorInfo> tensors_;
};

bool exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// The first pickle file of a directory, "" if it has none.
std::string find_pickle(const std::string& directory) {
  std::error_code failure;
  std::string first;
  for (fs::directory_iterator it(directory, failure), end; !failure && it != end;
       it.increment(failure)) {
    const std::string path = it->path().string();
    if (!pickle_advice(path).empty() && (first.empty() || path < first)) first = path;
  }
  return first;
}

Status check_shard_name(const std::string& name) {
  const bool plain = !name.empty() && name != "." && name.find("..") == name.npos &&
                     name.find_first_of(std::string_view("/\\:\0", 4)) == name.npos;
  if (!plain) return error("shard '{}' is not a plain file name", name);
  if (!name.ends_with(".safetensors")) return error("shard '{}' is not a .safetensors file", name);
  return {};
}

// After links, the file lies in the directory, or in the blobs of the cache the directory is in.
Status check_contained(const fs::path& directory, const std::string& name) {
  std::error_code failure;
  const fs::path root = fs::canonical(directory, failure);
  if (failure) return error("{}: {}", directory.string(), failure.message());
  const fs::path file = fs::canonical(directory / name, failure);
  if (failure) return error("shard '{}': {}", name, failure.message());
  if (file.parent_path() == root) return {};
  if (root.parent_path().filename() == "snapshots" &&
      file.parent_path() == root.parent_path().parent_path() / "blobs") {
    return {};
  }
  return error("shard '{}' leads out of the directory, to {}", name, file.string());
}

// tensor name -> shard file name
Result<std::map<std::string, std::string>> read_index(const std::string& path) {
  QUERN_ASSIGN(const Json index, read_json_file(path, kMaxIndex));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return error("{}: no object 'weight_map'", path);
  }
  std::map<std::string, std::string> map;
  std::set<std::string_view> shards;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) return error("{}: shard of '{}' is not a string", path, tensor);
    const std::string& name = shard.get_ref<const std::string&>();
    if (shards.insert(name).second) {
      if (Status ok = check_shard_name(name); !ok) return error("{}: {}", path, ok.error().message);
    }
    map.emplace(tensor, name);
  }
  if (shards.size() > kMaxShards)
    return error("{}: {} shards, limit {}", path, shards.size(), kMaxShards);
  return map;
}

Status HfCheckpoint::load_shards(const std::string& index_path) {
  QUERN_ASSIGN(const auto map, read_index(index_path));
  const fs::path directory = fs::path(index_path).parent_path();
  std::set<std::string> names;
  for (const auto& [tensor, shard] : map) names.insert(shard);
  std::vector<std::string> absent;
  for (const std::string& name : names) {
    if (!exists((directory / name).string())) absent.push_back(name);
  }
  if (!absent.empty()) {
    return error("{}: {} of {} shards are missing, the first is '{}'", index_path, absent.size(),
                 names.size(), absent[0]);
  }
  std::map<std::string, std::string> seen;  // tensor -> shard that holds it
  for (const std::string& name : names) {
    if (Status ok = check_contained(directory, name); !ok) {
      return error("{}: {}", index_path, ok.error().message);
    }
    QUERN_ASSIGN(auto file, SafetensorsFile::open((directory / name).string()));
    for (const TensorInfo& tensor : file->tensors()) {
      const auto [place, is_new] = seen.emplace(tensor.name, name);
      if (!is_new) {
        return error("{}: tensor '{}' is in two shards, '{}' and '{}'", index_path, tensor.name,
                     place->second, name);
      }
      const auto mapped = map.find(tensor.name);
      if (mapped != map.end() && mapped->second == name) tensors_.push_back(tensor);
    }
    files_.push_back(std::move(file));
  }
  if (tensors_.size() == map.size()) return {};
  size_t n_missing = 0;
  std::string first;
  for (const auto& [tensor, shard] : map) {
    const auto place = seen.find(tensor);
    if (place != seen.end() && place->second == shard) continue;
    if (n_missing++ == 0) first = fmt::format("'{}' in '{}'", tensor, shard);
  }
  return error("{}: {} of {} tensors are not in their shards, the first is {}", index_path,
               n_missing, map.size(), first);
}

Status HfCheckpoint::load(const std::string& directory) {
  path_ = directory;
  const fs::path root(directory);
  const std::string config = (root / "config.json").string();
  const std::string single = (root / kSingle).string(), index = (root / kIndex).string();
  if (!exists(config)) return error("{}: no config.json; expected a model directory", directory);
  QUERN_ASSIGN(config_, read_json_file(config, kMaxConfig));
  if (!config_.is_object()) return error("{}: not a JSON object", config);
  if (exists(single)) {
    QUERN_ASSIGN(auto file, SafetensorsFile::open(single));
    tensors_ = file->tensors();
    files_.push_back(std::move(file));
  } else if (exists(index)) {
    QUERN_TRY(load_shards(index));
    std::sort(tensors_.begin(), tensors_.end(),
              [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  } else if (const std::string pickle = find_pickle(directory); !pickle.empty()) {
    return error("{}", pickle_advice(pickle));
  } else {
    return error("{}: neither {} nor {}", directory, kSingle, kIndex);
  }
  return {};
}

Status HfCheckpoint::read_rows(const TensorInfo& tensor, int64_t first_row, int64_t n_rows,
                               float* dst) const {
  QUERN_TRY(check_row_range(tensor, first_row, n_rows));
  const int64_t cols = matrix_cols(tensor), n = n_rows * cols;
  const std::byte* src = tensor.bytes + first_row * cols * dtype_bits(tensor.dtype) / 8;
  if (is_plain_float(tensor.dtype)) {
    if (n > 0) convert_to_float(tensor.dtype, src, n, dst);
  } else if (tensor.dtype == DType::kF8E4M3) {
    for (int64_t i = 0; i < n; ++i) dst[i] = f8e4m3_to_float(static_cast<uint8_t>(src[i]));
  } else if (tensor.dtype == DType::kF8E5M2) {
    for (int64_t i = 0; i < n; ++i) dst[i] = f8e5m2_to_float(static_cast<uint8_t>(src[i]));
  } else {
    return error("tensor '{}' is {}, expected F64, F32, F16, BF16, F8_E4M3 or F8_E5M2", tensor.name,
                 dtype_name(tensor.dtype));
  }
  return {};
}

void HfCheckpoint::release(const TensorInfo& tensor) const {
  for (const auto& file : files_) {
    const std::span<const std::byte> bytes = file->file().bytes();
    if (tensor.bytes < bytes.data() || tensor.bytes >= bytes.data() + bytes.size()) continue;
    file->file().release(static_cast<size_t>(tensor.bytes - bytes.data()), tensor.n_bytes);
    return;
  }
}

}  // namespace

std::string pickle_advice(const std::string& path) {
  const std::string suffix = fs::path(path).extension().string();
  if (suffix != ".bin" && suffix != ".pt" && suffix != ".pth") return "";
  return fmt::format(
      "{}: a pickle checkpoint can run code when it is opened, so it is not read; convert it to "
      "safetensors first",
      path);
}

Result<std::unique_ptr<Checkpoint>> open_hf_checkpoint(const std::string& directory) {
  auto checkpoint = std::make_unique<HfCheckpoint>();
  QUERN_TRY(checkpoint->load(directory));
  return checkpoint;
}

}  // namespace quern
