// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>

#include "cli/compress_options.h"

namespace quern::cli {
namespace {

std::string bits_text(const Json& unit) {
  if (unit["stage"] == "keep") return "keep";
  return fmt::format("{:.2f}", 8 * unit["bytes"].get<double>() / unit["weights"].get<double>());
}

}  // namespace

std::vector<std::string> plan_lines(const Json& plan) {
  // "gate[3:4]" is of role gate, layer 3; what has no range stands alone.
  std::map<int, std::map<std::string, std::string>> layers;
  std::vector<std::string> roles, lines;
  for (const Json& unit : plan["units"]) {
    const std::string name = unit["unit"];
    const size_t bracket = name.find('[');
    if (bracket == std::string::npos) {
      lines.push_back(fmt::format("{:8}{:>6} bits  {}", name, bits_text(unit),
                                  unit["stage"].get<std::string>()));
      continue;
    }
    const std::string role = name.substr(0, bracket);
    if (std::find(roles.begin(), roles.end(), role) == roles.end()) roles.push_back(role);
    layers[std::atoi(name.c_str() + bracket + 1)][role] = bits_text(unit);
  }
  if (!layers.empty()) {
    std::string head = "layer   ";
    for (const std::string& role : roles) head += fmt::format("{:>6}", role);
    lines.push_back(head + "   bits a weight");
  }
  for (const auto& [layer, row] : layers) {
    std::string line = fmt::format("{:<8}", layer);
    for (const std::string& role : roles) {
      const auto it = row.find(role);
      line += fmt::format("{:>6}", it == row.end() ? "-" : it->second);
    }
    lines.push_back(std::move(line));
  }
  std::string total = fmt::format("plan    {} ({} bytes), {:.3f} bits a weight of the whole model",
                                  human_bytes(plan["bytes"].get<double>()),
                                  plan["bytes"].get<uint64_t>(), plan["bpw"].get<double>());
  if (plan.contains("expected_kl")) {
    total += fmt::format(", expected KL {:.4f}", plan["expected_kl"].get<double>());
  }
  lines.push_back(std::move(total));
  std::string cost =
      fmt::format("peak    about {} beyond mapped files", human_bytes(plan["peak_bytes"]));
  if (plan.contains("seconds")) {
    cost += fmt::format(", about {} to code", human_seconds(plan["seconds"]));
  }
  lines.push_back(std::move(cost));
  if (plan.contains("uniform")) {
    lines.push_back(fmt::format("uniform {} ({} bytes), expected KL {:.4f}: made too, to compare",
                                human_bytes(plan["uniform"]["bytes"].get<double>()),
                                plan["uniform"]["bytes"].get<uint64_t>(),
                                plan["uniform"]["expected_kl"].get<double>()));
  }
  return lines;
}

}  // namespace quern::cli
