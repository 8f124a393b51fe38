// SPDX-License-Identifier: Apache-2.0
#include "model/archs/config_reader.h"

#include <cmath>

namespace quern {
namespace {

struct ActivationRow {
  std::string_view name;
  Activation activation;
};

constexpr ActivationRow kActivations[] = {
    {"silu", Activation::kSilu},
    {"swish", Activation::kSilu},
    {"gelu", Activation::kGelu},
    {"gelu_python", Activation::kGelu},
    {"gelu_new", Activation::kGeluTanh},
    {"gelu_fast", Activation::kGeluTanh},
    {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"gelu_python_tanh", Activation::kGeluTanh},
    {"relu", Activation::kRelu},
    {"relu2", Activation::kRelu2},
};

constexpr size_t kMaxEndIds = 1024;

}  // namespace

ConfigReader::ConfigReader(const Json& config, std::string_view where)
    : config_(&config), where_(where) {
  static const Json kEmpty = Json::object();
  if (config.is_object()) return;
  config_ = &kEmpty;
  refuse("got {}, expected an object", config.type_name());
}

bool ConfigReader::has(std::string_view key) const {
  const auto found = config_->find(key);
  return found != config_->end() && !found->is_null();
}

std::string_view ConfigReader::either(std::string_view a, std::string_view b) const {
  return !has(a) && has(b) ? b : a;
}

const Json* ConfigReader::array(std::string_view key) {
  if (!has(key)) return nullptr;
  const Json& value = *config_->find(key);
  if (value.is_array()) return &value;
  refuse("key '{}': got {}, expected an array", key, value.type_name());
  return nullptr;
}

int64_t ConfigReader::integer(std::string_view key, int64_t low, int64_t high) {
  return take(json_int(*config_, key, low, high), low);
}

int64_t ConfigReader::integer_or(std::string_view key, int64_t low, int64_t high,
                                 int64_t fallback) {
  return take(json_int_or(*config_, key, low, high, fallback), low);
}

double ConfigReader::number_or(std::string_view key, double low, double high, double fallback) {
  const double value = take(json_number_or(*config_, key, fallback), low);
  if (value >= low && value <= high) return value;  // refuses a NaN too
  if (has(key)) refuse("key '{}': got {}, expected {} to {}", key, value, low, high);
  return has(key) ? low : fallback;
}

bool ConfigReader::flag_or(std::string_view key, bool fallback) {
  return take(json_bool_or(*config_, key, fallback), fallback);
}

std::string ConfigReader::text_or(std::string_view key, std::string_view fallback) {
  return take(json_string_or(*config_, key, fallback), std::string(fallback));
}

Activation ConfigReader::activation_or(std::string_view key, std::string_view fallback) {
  const std::string name = text_or(key, fallback);
  std::string known;
  for (const ActivationRow& row : kActivations) {
    if (row.name == name) return row.activation;
    known += known.empty() ? "" : ", ";
    known += row.name;
  }
  refuse("key '{}': got '{}', expected one of {}", key, name, known);
  return Activation::kSilu;
}

void ConfigReader::fail(Error error) {
  if (status_) status_ = tl::unexpected<Error>(in_context(std::move(error), where_));
}

void read_special_ids(ConfigReader& reader, ModelDesc& model) {
  const auto id_of = [&](std::string_view key, const Json& value) -> int32_t {
    if (value.is_number_integer()) {
      const bool fits = !value.is_number_unsigned() || value.get<uint64_t>() <= kMaxVocab;
      const int64_t id = fits ? value.get<int64_t>() : kMaxVocab;
      if (id >= -1 && id < model.n_vocab) return static_cast<int32_t>(id);
    }
    const bool is_short = value.is_number();  // never a whole tree in a message
    reader.refuse("key '{}': got {}, expected a token below vocab_size {}", key,
                  is_short ? value.dump() : value.type_name(), model.n_vocab);
    return -1;
  };
  const auto add_end = [&](const Json& value) {
    const int32_t id = id_of("eos_token_id", value);
    if (id >= 0) model.eos.push_back(id);
  };
  const Json& config = reader.config();
  if (reader.has("bos_token_id")) {
    model.bos = id_of("bos_token_id", *config.find("bos_token_id"));
  }
  if (!reader.has("eos_token_id")) return;
  const Json& end = *config.find("eos_token_id");
  if (!end.is_array()) return add_end(end);
  if (end.size() > kMaxEndIds) {
    return reader.refuse("key 'eos_token_id': got {} ids, expected at most {}", end.size(),
                         kMaxEndIds);
  }
  for (const Json& value : end) add_end(value);
}

void set_windows(ConfigReader& reader, ModelDesc& model, int64_t window,
                 bool (*fallback)(int64_t layer)) {
  const Json* types = reader.array("layer_types");
  if (types != nullptr && types->size() != model.layers.size()) {
    return reader.refuse("key 'layer_types': got {} entries, expected one for each of {} layers",
                         types->size(), model.layers.size());
  }
  for (size_t i = 0; i < model.layers.size(); ++i) {
    bool has_window = fallback(static_cast<int64_t>(i));
    if (types != nullptr) {
      const Json& type = (*types)[i];
      const bool full = type == "full_attention";
      has_window = type == "sliding_attention";
      if (!full && !has_window) {
        return reader.refuse(
            "key 'layer_types': entry {} is neither 'full_attention' nor 'sliding_attention'", i);
      }
      if (has_window && window == 0) {
        return reader.refuse("key 'sliding_window': absent, though layer {} is 'sliding_attention'",
                             i);
      }
    }
    model.layers[i].attention.window = has_window ? window : 0;
  }
}

}  // namespace quern
