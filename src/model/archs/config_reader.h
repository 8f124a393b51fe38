// SPDX-License-Identifier: Apache-2.0
// Reads the hyper-parameters of config.json with bounds. The first error is kept and every later
// read returns its lowest legal value, so that a description is written straight down and checked
// once at its end:
//
//   ConfigReader reader(config);
//   model.d_model = reader.integer("hidden_size", 1, kMaxWidth);
//   ...
//   QUERN_TRY(reader.status());
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "formats/json.h"
#include "kernels/activation.h"
#include "model/layer_desc.h"

namespace quern {

// No decoder comes near these; they keep the products of two sizes far from overflow and the
// description of a hostile file small.
inline constexpr int64_t kMaxLayers = 10'000;
inline constexpr int64_t kMaxHeads = 1 << 16;
inline constexpr int64_t kMaxHeadWidth = 1024;
inline constexpr int64_t kMaxWidth = 1 << 24;  // d_model, d_ffn
inline constexpr int64_t kMaxVocab = 1 << 24;
inline constexpr int64_t kMaxExperts = 1 << 16;
inline constexpr int64_t kMaxContext = int64_t{1} << 31;

class ConfigReader {
 public:
  // `where` names the object in errors.
  explicit ConfigReader(const Json& config, std::string_view where = "config.json");

  bool has(std::string_view key) const;  // present and not null
  // The first key that is present, else `a`: for models whose keys have two spellings.
  std::string_view either(std::string_view a, std::string_view b) const;
  const Json* array(std::string_view key);  // null if absent or null

  int64_t integer(std::string_view key, int64_t low, int64_t high);
  int64_t integer_or(std::string_view key, int64_t low, int64_t high, int64_t fallback);
  double number_or(std::string_view key, double low, double high, double fallback);
  bool flag_or(std::string_view key, bool fallback);
  std::string text_or(std::string_view key, std::string_view fallback);
  Activation activation_or(std::string_view key, std::string_view fallback);

  // Keeps an error, if it is the first.
  void fail(Error error);
  template <class... Args>
  void refuse(fmt::format_string<Args...> format, Args&&... args) {
    fail(Error{ErrorKind::kFailed, fmt::format(format, std::forward<Args>(args)...)});
  }

  const Json& config() const { return *config_; }
  bool ok() const { return status_.has_value(); }
  Status status() const { return status_; }

 private:
  template <class T>
  T take(Result<T> value, T fallback) {
    if (value) return *std::move(value);
    fail(std::move(value).error());
    return fallback;
  }

  const Json* config_;
  std::string where_;
  Status status_;
};

// bos_token_id (an id or null) and eos_token_id (an id, a list or null), within the vocabulary.
void read_special_ids(ConfigReader& reader, ModelDesc& model);

// layer_types: which layers see a window only. Absent: `fallback`, a function of the layer. A
// layer with a window needs `window`, what sliding_window says, to be above 0.
void set_windows(ConfigReader& reader, ModelDesc& model, int64_t window, bool (*fallback)(int64_t));

}  // namespace quern
