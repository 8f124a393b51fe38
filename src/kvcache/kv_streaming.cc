// SPDX-License-Identifier: Apache-2.0
// streaming: the first tokens and the newest (StreamingLLM, arXiv 2309.17453). Trained models park
// attention on the first tokens; a window without them is useless.
#include "kvcache/kv_policy.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    {"sinks", spec::ParamKind::kInt, "4", 0, 1 << 20, "", "first tokens that stay"},
    {"window", spec::ParamKind::kInt, "", 1, 1 << 20, "", "newest tokens that stay"},
    {"positions", spec::ParamKind::kChoice, "cache", 0, 0, "cache|text", "what distances count"},
    kEveryParam,
};

class KvStreaming final : public KvPolicy {
 public:
  explicit KvStreaming(const spec::Params& params)
      : text_(policy_text(params)),
        sinks_(params.integer("sinks")),
        window_(params.integer("window")),
        every_(params.integer("every")),
        is_moving_(params.word("positions") == "cache") {}

  std::string spec() const override { return text_; }
  int64_t budget() const override { return sinks_ + window_; }
  int64_t most_slots() const override { return budget() + every_; }
  int64_t next_decision(int64_t position) const override {
    return (position / every_ + 1) * every_;
  }
  int64_t n_moving() const override { return is_moving_ ? sinks_ : 0; }
  int64_t most_distance() const override { return is_moving_ ? most_slots() : kNever; }
  Status check_coded() const override {
    return usage_error("{} drops positions from the middle of pages and turns keys of others",
                       text_);
  }
  void choose(std::span<const float> scores, std::vector<int32_t>& keep) const override {
    const auto n = static_cast<int64_t>(scores.size());
    keep.clear();
    for (int64_t i = 0; i < n; ++i) {
      if (i < sinks_ || i >= n - window_) keep.push_back(static_cast<int32_t>(i));
    }
  }

 private:
  std::string text_;
  int64_t sinks_, window_, every_;
  bool is_moving_;
};

constexpr std::string_view kExamples[] = {"streaming(window=60)",
                                          "streaming(sinks=0, window=50, every=16)",
                                          "streaming(sinks=3, window=40, positions=text)"};

}  // namespace

extern const KvPolicyInfo kv_streaming_policy_info;
const KvPolicyInfo kv_streaming_policy_info = {
    .name = "streaming",
    .params = kParams,
    .summary = "the first tokens and the newest (StreamingLLM)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvPolicy>> {
      return std::make_unique<KvStreaming>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
