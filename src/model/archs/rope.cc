// SPDX-License-Identifier: Apache-2.0
#include "model/archs/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace quern {
namespace {

constexpr double kMaxTheta = 1e15;
constexpr double kMaxFactor = 1e6;
constexpr std::string_view kOriginal = "original_max_position_embeddings";

// What all kinds share: the reader of the scaling's own object, and the sizes.
struct Scaling {
  ConfigReader& own;
  double theta = 0;
  int64_t n_dims = 0;
  int64_t n_context = 0;
  int64_t original = 0;
};

void scale_linear(Scaling& s, RopeDesc& rope) {
  const double factor = s.own.number_or("factor", 1, kMaxFactor, 0);
  if (factor == 0) return s.own.refuse("key 'factor': absent, expected 1 to {}", kMaxFactor);
  for (double& f : rope.inv_freq) f /= factor;
}

void scale_llama3(Scaling& s, RopeDesc& rope) {
  const double factor = s.own.number_or("factor", 1, kMaxFactor, 8);
  const double low = s.own.number_or("low_freq_factor", 1e-6, kMaxFactor, 1);
  const double high = s.own.number_or("high_freq_factor", 1e-6, kMaxFactor, 4);
  if (high <= low) {
    return s.own.refuse("key 'high_freq_factor': got {}, expected above low_freq_factor {}", high,
                        low);
  }
  const double original = static_cast<double>(s.original);
  for (double& f : rope.inv_freq) {
    const double turns = original * f / (2 * std::numbers::pi);  // in the original context
    if (turns > high) continue;
    const double ramp = turns < low ? 0 : (turns - low) / (high - low);
    f = (1 - ramp) * f / factor + ramp * f;
  }
}

// The dimension whose frequency makes `turns` turns in the original context.
double dimension_of(const Scaling& s, double turns) {
  const double wavelength = static_cast<double>(s.original) / (turns * 2 * std::numbers::pi);
  return static_cast<double>(s.n_dims) * std::log(wavelength) / (2 * std::log(s.theta));
}

double yarn_magnitude(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

// A number, or `fallback` where it is absent or 0 (both mean "unset" here).
double number_unless_zero(ConfigReader& own, std::string_view key, double fallback) {
  const double value = own.number_or(key, 0, kMaxFactor, 0);
  return value == 0 ? fallback : value;
}

void scale_yarn(Scaling& s, RopeDesc& rope) {
  const double context_ratio = static_cast<double>(s.n_context) / static_cast<double>(s.original);
  const double factor = s.own.number_or("factor", 1, kMaxFactor, context_ratio);
  const double mscale = number_unless_zero(s.own, "mscale", 0);
  const double mscale_all = number_unless_zero(s.own, "mscale_all_dim", 0);
  double magnitude = yarn_magnitude(factor, 1);
  if (mscale != 0 && mscale_all != 0) {
    magnitude = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all);
  }
  rope.magnitude = s.own.number_or("attention_factor", 1e-6, kMaxFactor, magnitude);

  double low = dimension_of(s, number_unless_zero(s.own, "beta_fast", 32));
  double high = dimension_of(s, number_unless_zero(s.own, "beta_slow", 1));
  if (s.own.flag_or("truncate", true)) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(s.n_dims - 1));
  if (low == high) high += 0.001;
  for (size_t j = 0; j < rope.inv_freq.size(); ++j) {
    const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
    double& f = rope.inv_freq[j];
    f = f / factor * ramp + f * (1 - ramp);
  }
}

// f / factors, one factor for each frequency.
std::vector<double> divide(Scaling& s, const std::vector<double>& f, std::string_view key) {
  std::vector<double> result = f;
  const Json* factors = s.own.array(key);
  if (factors == nullptr || factors->size() != f.size()) {
    s.own.refuse("key '{}': got {} factors, expected {}", key,
                 factors == nullptr ? 0 : factors->size(), f.size());
    return result;
  }
  for (size_t j = 0; j < f.size(); ++j) {
    const Json& value = (*factors)[j];
    const double factor = value.is_number() ? value.get<double>() : 0;
    if (!(factor >= 1e-6 && factor <= kMaxFactor)) {
      s.own.refuse("key '{}': entry {} is not a number from 1e-6 to {}", key, j, kMaxFactor);
      return result;
    }
    result[j] /= factor;
  }
  return result;
}

void scale_longrope(Scaling& s, RopeDesc& rope) {
  if (s.own.has("short_mscale") || s.own.has("long_mscale")) {
    return s.own.refuse("key 'short_mscale': magnitudes by length are not supported");
  }
  if (s.original < 2) {
    return s.own.refuse("key '{}': got {}, expected at least 2", kOriginal, s.original);
  }
  const double original = static_cast<double>(s.original);
  const double ratio = static_cast<double>(s.n_context) / original;
  const double factor = s.own.number_or("factor", 1e-6, kMaxFactor, ratio);
  const double magnitude = factor <= 1 ? 1 : std::sqrt(1 + std::log(factor) / std::log(original));
  rope.magnitude = s.own.number_or("attention_factor", 1e-6, kMaxFactor, magnitude);
  rope.original_context = s.original;
  rope.inv_freq_long = divide(s, rope.inv_freq, "long_factor");
  rope.inv_freq = divide(s, rope.inv_freq, "short_factor");
}

void keep_frequencies(Scaling&, RopeDesc&) {}

struct Kind {
  std::string_view name;
  void (*scale)(Scaling&, RopeDesc&);
};

constexpr Kind kKinds[] = {
    {"default", keep_frequencies}, {"dynamic", keep_frequencies}, {"linear", scale_linear},
    {"llama3", scale_llama3},      {"yarn", scale_yarn},          {"longrope", scale_longrope},
    {"su", scale_longrope},
};

// The object that holds the scaling (null: none) and its key.
const Json* scaling_object(ConfigReader& reader, std::string_view& key) {
  key = reader.either("rope_parameters", "rope_scaling");
  if (!reader.has(key)) return nullptr;
  const Json& object = *reader.config().find(key);
  if (!object.is_object()) {
    reader.refuse("key '{}': got {}, expected an object", key, object.type_name());
    return nullptr;
  }
  for (const auto& [name, value] : object.items()) {
    if (value.is_object()) {
      reader.refuse("key '{}': parameters by layer type ('{:.40}') are not supported", key, name);
      return nullptr;
    }
  }
  return &object;
}

// How many dimensions of a head turn.
int64_t rotary_width(ConfigReader& reader, ConfigReader& own, const RopeOptions& options) {
  const bool in_own = own.has("partial_rotary_factor");
  const double fallback = options.partial == 0 ? 1 : options.partial;
  const double share = in_own ? own.number_or("partial_rotary_factor", 0, 1, fallback)
                              : reader.number_or(options.partial_key, 0, 1, fallback);
  if (options.partial == 0 && share != 1) {
    reader.refuse("key '{}': got {}; this architecture turns whole heads", options.partial_key,
                  share);
  }
  const int64_t n_dims = static_cast<int64_t>(static_cast<double>(options.d_head) * share);
  if (n_dims < 2 || n_dims % 2 != 0) {
    reader.refuse("rotary dimensions: got {} of head_dim {}, expected an even number from 2",
                  n_dims, options.d_head);
  }
  return std::max<int64_t>(n_dims - n_dims % 2, 2);
}

}  // namespace

RopeDesc read_rope(ConfigReader& reader, const RopeOptions& options) {
  std::string_view key;
  static const Json kNone = Json::object();
  const Json* object = scaling_object(reader, key);
  ConfigReader own(object == nullptr ? kNone : *object, key);
  const double theta = own.has("rope_theta")
                           ? own.number_or("rope_theta", 1.0001, kMaxTheta, 0)
                           : reader.number_or(options.theta_key, 1.0001, kMaxTheta, options.theta);
  RopeDesc rope;
  rope.n_dims = static_cast<int>(rotary_width(reader, own, options));
  for (int j = 0; j < rope.n_dims; j += 2) {
    rope.inv_freq.push_back(std::pow(theta, -static_cast<double>(j) / rope.n_dims));
  }
  const int64_t silent =
      options.original_context == 0 ? options.n_context : options.original_context;
  Scaling scaling{own, theta, rope.n_dims, options.n_context, 0};
  scaling.original = reader.has(kOriginal) ? reader.integer(kOriginal, 1, kMaxContext)
                                           : own.integer_or(kOriginal, 1, kMaxContext, silent);
  const std::string name = own.text_or(own.either("rope_type", "type"), "default");
  std::string known;
  bool found = false;
  for (const Kind& kind : kKinds) {
    if (kind.name == name) {
      kind.scale(scaling, rope);
      found = true;
    }
    known += known.empty() ? "" : ", ";
    known += kind.name;
  }
  if (!found) own.refuse("key 'rope_type': got '{:.40}', expected one of {}", name, known);
  if (!own.ok()) reader.fail(own.status().error());
  return rope;
}

}  // namespace quern
