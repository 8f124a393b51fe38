// SPDX-License-Identifier: Apache-2.0
// The work folder of a compression, `OUT.partial`: one safetensors file per finished layer, each
// appearing whole by a rename, and job.json that says whose work it is. A killed run leaves it; the
// same command finds it and goes on after the last finished layer. The output folder itself
// appears only at the end, complete, by a rename.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "tensor/matrix.h"

namespace quern {

// Tensors of a step whose names begin so are left out of the model.
constexpr std::string_view kJournalOnly = "quern.journal.";

struct OutputTensor {
  TensorSpec spec;
  AlignedVector<std::byte> bytes;
};

class Journal {
 public:
  // `job` identifies the work: recipe, source, calibration, seed, version. A folder left by another
  // job is emptied. Fails if another process works in it.
  static Result<Journal> open(const std::string& out, const Json& job);
  Journal(Journal&& other) noexcept;
  Journal& operator=(Journal&&) = delete;
  ~Journal();

  const std::string& folder() const { return folder_; }
  std::string step_path(int step) const;
  bool has(int step) const;
  // `report` is kept in the file's metadata.
  Status write(int step, const std::vector<OutputTensor>& tensors, const Json& report);
  Result<std::unique_ptr<SafetensorsFile>> read(int step) const;
  Result<Json> report(int step) const;
  // The error of a step whose file does not hold what it must.
  tl::unexpected<Error> damaged(int step, std::string_view what) const;

  // Moves the folder of results to its final place; replaces an older output there.
  Status publish(const std::string& results, const std::string& out);

 private:
  Journal() = default;
  std::string folder_;
  int lock_ = -1;
};

}  // namespace quern
