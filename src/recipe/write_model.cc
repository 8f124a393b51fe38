// SPDX-License-Identifier: Apache-2.0
#include "recipe/write_model.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <numeric>

#include "base/file.h"
#include "formats/gguf.h"
#include "recipe/output_size.h"

namespace quern {
namespace {

namespace fs = std::filesystem;

// Bytes of one output tensor, in a journal step or in the source.
struct Piece {
  TensorSpec spec;
  const std::byte* bytes;
  size_t n_bytes;
  std::function<void()> release;  // of the pages just copied: a whole model must not stay resident
};

Result<std::vector<Piece>> gather(const ModelFiles& source, const OutputPlan& plan,
                                  const std::vector<std::unique_ptr<SafetensorsFile>>& steps) {
  std::vector<Piece> pieces;
  for (const auto& step : steps) {
    for (const TensorInfo& tensor : step->tensors()) {
      if (tensor.name.starts_with(kJournalOnly)) continue;
      const MappedFile& file = step->file();
      pieces.push_back({{tensor.name, tensor.dtype, tensor.shape},
                        tensor.bytes,
                        tensor.n_bytes,
                        [&file, &tensor] {
                          file.release(static_cast<size_t>(tensor.bytes - file.bytes().data()),
                                       tensor.n_bytes);
                        }});
    }
  }
  for (const std::string& name : plan.copied()) {
    const TensorInfo* tensor = source.store().checkpoint().find(name);
    if (tensor == nullptr) return error("tensor '{}' vanished from the source", name);
    const Checkpoint& checkpoint = source.store().checkpoint();
    pieces.push_back({{name, tensor->dtype, tensor->shape},
                      tensor->bytes,
                      tensor->n_bytes,
                      [&checkpoint, tensor] { checkpoint.release(*tensor); }});
  }
  std::sort(pieces.begin(), pieces.end(),
            [](const Piece& a, const Piece& b) { return a.spec.name < b.spec.name; });
  return pieces;
}

Status write_shard(const std::string& path, std::span<const Piece> pieces) {
  std::vector<TensorSpec> specs;
  std::map<std::string_view, const Piece*> by_name;
  for (const Piece& piece : pieces) {
    specs.push_back(piece.spec);
    by_name[piece.spec.name] = &piece;
  }
  QUERN_ASSIGN(SafetensorsWriter writer,
               SafetensorsWriter::create(path, std::move(specs), {{"format", "pt"}}));
  for (const TensorSpec& spec : writer.order()) {
    const Piece& piece = *by_name.at(spec.name);
    QUERN_TRY(writer.append(spec.name, piece.bytes, piece.n_bytes));
    piece.release();
  }
  return writer.finish();
}

Status write_weights(const std::string& folder, const std::vector<Piece>& pieces) {
  std::vector<uint64_t> sizes;
  for (const Piece& piece : pieces) sizes.push_back(piece.n_bytes);
  const std::vector<size_t> starts = shard_starts(sizes);
  const uint64_t total = std::accumulate(sizes.begin(), sizes.end(), uint64_t{0});
  if (starts.size() == 1) return write_shard(folder + "/model.safetensors", pieces);
  Json map = Json::object();
  for (size_t s = 0; s < starts.size(); ++s) {
    const size_t end = s + 1 < starts.size() ? starts[s + 1] : pieces.size();
    const std::string name =
        fmt::format("model-{:05d}-of-{:05d}.safetensors", s + 1, starts.size());
    const std::span<const Piece> part(pieces.data() + starts[s], end - starts[s]);
    QUERN_TRY(write_shard(fs::path(folder) / name, part));
    for (const Piece& piece : part) map[piece.spec.name] = name;
  }
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  return write_file_atomically(folder + "/model.safetensors.index.json", index.dump(1));
}

// Everything beside the weights: tokenizer, templates, generation defaults, licence.
Status copy_companions(const std::string& from, const std::string& to) {
  constexpr uint64_t kLargest = uint64_t{256} << 20;
  std::error_code problem;
  for (const auto& entry : fs::directory_iterator(from, problem)) {
    const std::string name = entry.path().filename().string();
    const std::string extension = entry.path().extension().string();
    const bool is_wanted = extension == ".json" || extension == ".model" || extension == ".jinja" ||
                           extension == ".txt" || extension == ".md" || name == "LICENSE";
    if (!entry.is_regular_file() || !is_wanted || name == "config.json" ||
        name.ends_with(".safetensors.index.json") || entry.file_size() > kLargest) {
      continue;
    }
    QUERN_ASSIGN(const std::string content, read_file(entry.path().string(), kLargest));
    QUERN_TRY(write_file_atomically(fs::path(to) / name, content));
  }
  if (problem) return error("{}: {}", from, problem.message());
  return {};
}

}  // namespace

Result<std::string> output_folder(std::string out, const std::string& model, Existing existing) {
  while (out.size() > 1 && out.ends_with('/')) out.pop_back();  // "out/" is "out"
  std::error_code problem;
  const bool is_there = fs::exists(out, problem);
  if (problem) return usage_error("{}: {}", out, problem.message());
  if (!is_there) return out;
  if (existing == Existing::kRefuse) {
    return usage_error("{} exists; choose another output or pass --force", out);
  }
  // Replacing a folder must not take the model away that is read.
  const fs::path target = fs::canonical(out, problem);
  const fs::path source = fs::weakly_canonical(model, problem);
  if (std::mismatch(target.begin(), target.end(), source.begin(), source.end()).first ==
      target.end()) {
    return usage_error("{} holds the model that is compressed; choose another output", out);
  }
  return out;
}

Status write_model(const ModelFiles& source, const OutputPlan& plan, const Packed& packed,
                   Journal& journal, const std::string& out, const Acceptance& accept) {
  const std::string results = journal.folder() + "/results";
  std::error_code problem;
  fs::remove_all(results, problem);
  fs::create_directories(results, problem);
  if (problem) return error("{}: {}", results, problem.message());
  std::vector<std::unique_ptr<SafetensorsFile>> steps;
  for (int step = 0; journal.has(step); ++step) {
    QUERN_ASSIGN(auto file, journal.read(step));
    steps.push_back(std::move(file));
  }
  QUERN_ASSIGN(const std::vector<Piece> pieces, gather(source, plan, steps));
  QUERN_TRY(write_weights(results, pieces));
  Json config = source.store().checkpoint().config();
  config["quantization_config"] = packed.to_json();
  QUERN_TRY(write_file_atomically(results + "/config.json", config.dump(1) + "\n"));
  if (fs::is_directory(source.path())) {
    QUERN_TRY(copy_companions(source.path(), results));
  } else {
    QUERN_ASSIGN(const auto gguf, GgufFile::open(source.path()));
    QUERN_TRY(write_file_atomically(results + "/tokenizer.gguf", metadata_only_image(*gguf)));
  }
  Status accepted = accept == nullptr ? Status() : accept(results);
  if (accepted) return journal.publish(results, out);
  if (accepted.error().kind == ErrorKind::kCancelled) return accepted;
  const std::string refused = out + ".refused";
  QUERN_TRY(journal.publish(results, refused));
  return error("{}; it is kept as {}", accepted.error().message, refused);
}

}  // namespace quern
