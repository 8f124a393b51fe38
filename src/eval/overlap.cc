// SPDX-License-Identifier: Apache-2.0
#include "eval/overlap.h"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <queue>
#include <unordered_set>

namespace quern {
namespace {

constexpr size_t kKept = 512;

// Of every run in turn.
template <typename Visit>
void for_each_run(std::span<const Token> tokens, const Visit& visit) {
  for (size_t at = 0; at + kOverlapRun <= tokens.size(); ++at) {
    visit(
        static_cast<uint32_t>(XXH3_64bits(tokens.data() + at, kOverlapRun * sizeof(Token)) >> 32));
  }
}

// Empty where it is anything else than what sketch_runs writes.
std::vector<uint32_t> read_hashes(const Json& sketch) {
  if (!sketch.is_object() || sketch.value("tokens", Json()) != kOverlapRun) return {};
  const auto text = sketch.find("hashes");
  if (text == sketch.end() || !text->is_string()) return {};
  const auto& digits = text->get_ref<const std::string&>();
  if (digits.size() % 8 != 0 || digits.size() / 8 > kKept) return {};
  std::vector<uint32_t> hashes(digits.size() / 8);
  for (size_t i = 0; i < hashes.size(); ++i) {
    const char* word = digits.data() + 8 * i;
    const auto [end, problem] = std::from_chars(word, word + 8, hashes[i], 16);
    if (problem != std::errc() || end != word + 8) return {};
  }
  return hashes;
}

}  // namespace

Json sketch_runs(const std::vector<std::vector<Token>>& samples) {
  std::priority_queue<uint32_t> largest;  // of those kept
  std::unordered_set<uint32_t> kept;
  for (const std::vector<Token>& sample : samples) {
    for_each_run(sample, [&](uint32_t hash) {
      if (kept.size() == kKept && hash >= largest.top()) return;
      if (!kept.insert(hash).second) return;
      largest.push(hash);
      if (kept.size() <= kKept) return;
      kept.erase(largest.top());
      largest.pop();
    });
  }
  if (kept.empty()) return Json::object();
  std::vector<uint32_t> hashes(kept.begin(), kept.end());
  std::sort(hashes.begin(), hashes.end());
  std::string digits;
  for (const uint32_t hash : hashes) digits += fmt::format("{:08x}", hash);
  return {{"tokens", kOverlapRun}, {"hashes", digits}};
}

std::optional<double> overlap(const Json& sketch, std::span<const Token> text) {
  const std::vector<uint32_t> hashes = read_hashes(sketch);
  if (hashes.empty()) return std::nullopt;
  // A sketch that is not full has all runs of its text.
  const uint32_t limit = hashes.size() < kKept ? UINT32_MAX : hashes.back();
  const std::unordered_set<uint32_t> known(hashes.begin(), hashes.end());
  int64_t n_looked = 0, n_found = 0;
  for_each_run(text, [&](uint32_t hash) {
    if (hash > limit) return;
    ++n_looked;
    n_found += known.contains(hash) ? 1 : 0;
  });
  if (n_looked == 0) return std::nullopt;
  return static_cast<double>(n_found) / static_cast<double>(n_looked);
}

}  // namespace quern
