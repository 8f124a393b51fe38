// SPDX-License-Identifier: Apache-2.0
#include "allocate/curves.h"

#include <cmath>
#include <filesystem>

#include "base/file.h"

namespace quern {
namespace {

constexpr int kFormat = 1;

Result<double> number_from(const Json& object, const char* key, double low,
                           const std::string& where) {
  const auto value = json_number(object, key);
  if (!value) return tl::unexpected(in_context(value.error(), where));
  if (!std::isfinite(*value) || *value < low) {
    return error("{}: {} is {}, expected at least {}", where, key, *value, low);
  }
  return *value;
}

Result<UnitCurve> unit_from(const Json& json, const std::string& where) {
  if (!json.is_object() || !json.contains("points") || !json["points"].is_object()) {
    return error("{}: expected an object with points", where);
  }
  UnitCurve unit;
  QUERN_ASSIGN(unit.probe_kl, number_from(json, "probe_kl", -1, where));
  QUERN_ASSIGN(unit.probe_loss, number_from(json, "probe_loss", 0, where));
  for (const auto& [text, point] : json["points"].items()) {
    const std::string place = fmt::format("{}: {}", where, text);
    if (!point.is_object()) return error("{}: expected an object", place);
    CurvePoint& into = unit.points[text];
    QUERN_ASSIGN(into.loss, number_from(point, "loss", 0, place));
    QUERN_ASSIGN(into.seconds, number_from(point, "seconds_per_weight", 0, place));
  }
  return unit;
}

}  // namespace

Result<Curves> curves_from_json(const Json& json, const std::string& where) {
  if (!json.is_object()) return error("{}: expected an object", where);
  QUERN_ASSIGN(const int64_t format, json_int(json, "quern_curves", 1, 1 << 20));
  if (format != kFormat) {
    return error("{}: format {}, expected {}", where, format, kFormat);
  }
  Curves curves;
  QUERN_ASSIGN(curves.key, json_string(json, "key"));
  if (!json.contains("units") || !json["units"].is_object()) {
    return error("{}: no units", where);
  }
  for (const auto& [name, unit] : json["units"].items()) {
    QUERN_ASSIGN(curves.units[name], unit_from(unit, fmt::format("{}: {}", where, name)));
  }
  return curves;
}

Result<Curves> Curves::load(const std::string& path, const std::string& key) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return Curves{key, {}};
  QUERN_ASSIGN(const Json json, read_json_file(path));
  QUERN_ASSIGN(Curves curves, curves_from_json(json, path));
  if (curves.key != key) {
    return usage_error(
        "{} holds the curves of another model, basis, calibration or seed; name another file",
        path);
  }
  return curves;
}

Status Curves::save(const std::string& path) const {
  Json list = Json::object();
  for (const auto& [name, unit] : units) {
    Json points = Json::object();
    for (const auto& [text, point] : unit.points) {
      points[text] = {{"loss", point.loss}, {"seconds_per_weight", point.seconds}};
    }
    list[name] = {{"probe_kl", unit.probe_kl}, {"probe_loss", unit.probe_loss}, {"points", points}};
  }
  const Json json = {{"quern_curves", kFormat}, {"key", key}, {"units", list}};
  std::error_code problem;
  const auto folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, problem);
  if (problem) return error("{}: {}", folder.string(), problem.message());
  return write_file_atomically(path, json.dump(1) + "\n");
}

}  // namespace quern
