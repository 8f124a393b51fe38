// SPDX-License-Identifier: Apache-2.0
#include "recipe/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/file.h"

namespace quern {
namespace {

namespace fs = std::filesystem;
constexpr const char* kReportKey = "quern_report";

Status os_error(const std::string& what, const std::error_code& problem) {
  return error("{}: {}", what, problem.message());
}

}  // namespace

Result<Journal> Journal::open(const std::string& out, const Json& job) {
  Journal journal;
  journal.folder_ = out + ".partial";
  std::error_code problem;
  fs::create_directories(journal.folder_, problem);
  if (problem) return tl::unexpected(os_error(journal.folder_, problem).error());
  const std::string lock = journal.folder_ + "/lock";
  journal.lock_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (journal.lock_ < 0) return error("{}: {}", lock, std::strerror(errno));
  if (::flock(journal.lock_, LOCK_EX | LOCK_NB) != 0) {
    return error("{}: another process is compressing into this folder", journal.folder_);
  }
  const std::string job_path = journal.folder_ + "/job.json";
  const auto old = read_json_file(job_path);
  if (old && *old == job) return journal;
  for (const auto& entry : fs::directory_iterator(journal.folder_, problem)) {
    if (entry.path().filename() != "lock") fs::remove_all(entry.path(), problem);
  }
  QUERN_TRY(write_file_atomically(job_path, job.dump(1)));
  return journal;
}

Journal::Journal(Journal&& other) noexcept
    : folder_(std::move(other.folder_)), lock_(std::exchange(other.lock_, -1)) {}

Journal::~Journal() {
  if (lock_ >= 0) ::close(lock_);
}

std::string Journal::step_path(int step) const {
  return fmt::format("{}/step-{:05d}.safetensors", folder_, step);
}

bool Journal::has(int step) const {
  std::error_code ignored;
  return fs::exists(step_path(step), ignored);
}

Status Journal::write(int step, const std::vector<OutputTensor>& tensors, const Json& report) {
  std::vector<TensorSpec> specs;
  std::map<std::string_view, const OutputTensor*> by_name;
  for (const OutputTensor& tensor : tensors) {
    specs.push_back(tensor.spec);
    by_name[tensor.spec.name] = &tensor;
  }
  QUERN_ASSIGN(SafetensorsWriter writer,
               SafetensorsWriter::create(step_path(step), std::move(specs),
                                         {{"format", "pt"}, {kReportKey, report.dump()}}));
  for (const TensorSpec& spec : writer.order()) {
    const OutputTensor& tensor = *by_name.at(spec.name);
    QUERN_TRY(writer.append(spec.name, tensor.bytes.data(), tensor.bytes.size()));
  }
  return writer.finish();
}

Result<std::unique_ptr<SafetensorsFile>> Journal::read(int step) const {
  return SafetensorsFile::open(step_path(step));
}

Result<Json> Journal::report(int step) const {
  QUERN_ASSIGN(const auto file, read(step));
  const auto it = file->metadata().find(kReportKey);
  if (it == file->metadata().end()) return error("{}: no report", step_path(step));
  return parse_json(it->second, step_path(step));
}

tl::unexpected<Error> Journal::damaged(int step, std::string_view what) const {
  return error("{}: {} is damaged; remove {} and start again", step_path(step), what, folder_);
}

Status Journal::publish(const std::string& results, const std::string& out) {
  std::error_code problem;
  const std::string old = folder_ + "/replaced";
  fs::remove_all(old, problem);  // left by a run that was killed here
  if (fs::exists(out, problem)) fs::rename(out, old, problem);
  if (problem) return os_error(out, problem);
  fs::rename(results, out, problem);
  if (problem) return os_error(out, problem);
  fs::remove_all(folder_, problem);
  return problem ? os_error(folder_, problem) : Status();
}

}  // namespace quern
