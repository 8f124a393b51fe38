// SPDX-License-Identifier: Apache-2.0
// What a cache keeps of a long text: policies that evict positions. Kept positions of a head lie in
// slots, in ascending order, with their scores.
//
// A policy decides behind certain positions, counted from the beginning of the text: the queries
// before one have been answered, those behind it see what was kept and what comes after. So what a
// query sees depends on the text before it alone, however that was cut into calls.
//
// A policy is plain data and pure functions; its state is the slots. It is called per step and
// layer, or KV head, never per position.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "spec/params.h"

namespace quern {

// Softmax weights of consecutive queries over the slots of one KV head.
struct KvWeights {
  const float* weights = nullptr;  // [n_q, n_heads, n_slots]; zero where a query sees nothing
  int64_t n_q = 0, n_heads = 0, n_slots = 0;
  int64_t position = 0;                // of the first query
  int64_t layer = 0, first_head = 0;   // of the model; the first of the query heads
  std::span<const int32_t> positions;  // [n_slots]
};

class KvPolicy {
 public:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  virtual ~KvPolicy() = default;
  virtual std::string spec() const = 0;    // canonical text
  virtual int64_t budget() const = 0;      // most slots behind a decision
  virtual int64_t most_slots() const = 0;  // at any time; kNever: as many as positions
  // The first position behind `position` (past it) where there is a decision.
  virtual int64_t next_decision(int64_t position) const = 0;

  // Whether keys may be coded; the reason if not.
  virtual Status check_coded() const = 0;
  virtual bool reads_weights() const { return false; }  // of every query
  // Newest queries whose weights are read at the one decision there is, behind the prompt; until
  // then nothing is coded. 0: decisions do not know of prompts.
  virtual int64_t n_prompt_queries() const { return 0; }
  // First positions whose keys turn with the window, so that distances are those in the cache.
  virtual int64_t n_moving() const { return 0; }

  // Whether what is dropped goes into a state that queries read (kv_feature_maps.h), by trained
  // parameters of the model.
  virtual bool absorbs() const { return false; }

  // The longest distance between a query and a key, where positions may go beyond the context.
  virtual int64_t most_distance() const { return kNever; }

  // scores [n_slots] gain what the weights say. Here: their sums, by query, then head.
  virtual void observe(const KvWeights& weights, float* scores) const;
  // keep <- the slots of a head that stay, ascending: as many for every head, by n_slots alone.
  virtual void choose(std::span<const float> scores, std::vector<int32_t>& keep) const = 0;
};

struct KvPolicyInfo {
  std::string_view name;
  spec::ParamSpecs params;
  std::string_view summary;
  Result<std::unique_ptr<KvPolicy>> (*make)(const spec::Params& params);
  std::span<const std::string_view> examples;  // texts that tests walk
};

std::span<const KvPolicyInfo> kv_policies();  // the rows of policies.inc
Result<std::unique_ptr<KvPolicy>> make_kv_policy(const spec::Call& call);

// What most policies have: budget, newest slots that always stay, distance of decisions.
inline constexpr spec::ParamSpec kEveryParam = {"every",
                                                spec::ParamKind::kInt,
                                                "64",
                                                1,
                                                1 << 20,
                                                "",
                                                "positions from one decision to the next"};

// keep <- the newest `window` slots and, of those before, the ones of the highest scores, `budget`
// in all; equal scores: the older.
void keep_best(std::span<const float> scores, int64_t budget, int64_t window,
               std::vector<int32_t>& keep);
// The same text, with parameters that differ from their defaults.
std::string policy_text(const spec::Params& params);

}  // namespace quern
