// SPDX-License-Identifier: Apache-2.0
// dmc: dynamic memory compression (DMC, arXiv 2403.09636). Per token and KV head
//   joins = a > 0,   weight = sigmoid(o) + 2^-7
// where a retrofitted checkpoint has its logits in one number of each head before RoPE, which is
// no part of attention any more,
//   a = k[j] - offset,   o = mean over the group of q[j] + offset,
// j the last dimension (Megatron-LM) or the first (the paper), and zero in queries and keys before
// RoPE and behind it, which would leak its partner into it. Without retrofitting, a linear function
// may decide, trained beside the weights:
//   a = A k + b,   o = mean over the group of O q + c.
// The weight's last term, an epsilon of bfloat16 as in training, keeps means from 0 / 0.
#include "kernels/kernels.h"
#include "kvcache/kv_merge.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    {"window", spec::ParamKind::kInt, "12", 0, 1 << 12, "", "newest tokens of a mean; 0: all"},
    {"decision", spec::ParamKind::kChoice, "last", 0, 0, "last|first|linear", "what decides"},
    {"offset", spec::ParamKind::kNumber, "5", 0, 100, "", "of the logits in heads"},
};

constexpr float kLeastWeight = 0x1p-7f;

float sigmoid(float x) {
  float pair[] = {x, 0};
  kernels().softmax(1, 2, pair, nullptr);  // e^x / (e^x + e^0)
  return pair[0];
}

class KvDmc final : public KvMerge {
 public:
  explicit KvDmc(const spec::Params& params)
      : text_(spec::print(params.canonical())),
        window_(params.integer("window")),
        offset_(static_cast<float>(params.number("offset"))),
        is_first_(params.word("decision") == "first"),
        is_linear_(params.word("decision") == "linear") {}

  std::string spec() const override { return text_; }
  int64_t window() const override { return window_; }
  bool has_tables() const override { return is_linear_; }

  // dmc.merge [n_kv_heads, d_head + 1]: A, b;  dmc.weight [n_heads, d_head + 1]: O, c.
  Result<std::shared_ptr<const KvMerge>> with_tables(const KvTableSet& tables, size_t layer,
                                                     const KvHeads& heads) const override {
    auto bound = std::make_shared<KvDmc>(*this);
    const auto take = [&](const char* name, int64_t n, std::vector<float>& to) -> Status {
      QUERN_ASSIGN(const auto table, tables.find(layer, name, 2));
      const Shape expected = {n, heads.d_head + 1};
      if (table->shape != expected) {
        return error("{} of layer {} is {}, expected {}", name, layer, to_string(table->shape),
                     to_string(expected));
      }
      to = table->values;
      return {};
    };
    QUERN_TRY(take("dmc.merge", heads.n_kv_heads, bound->merge_));
    QUERN_TRY(take("dmc.weight", heads.n_heads, bound->weight_));
    return bound;
  }

  void decide(const KvHeads& heads, MatrixView<const float> q, MatrixView<const float> k,
              uint8_t* joins, float* weights) const override {
    const int64_t group = heads.n_heads / heads.n_kv_heads, d = heads.d_head;
    for (int64_t i = 0; i < k.rows; ++i) {
      for (int64_t head = 0; head < heads.n_kv_heads; ++head) {
        float sum = 0;
        for (int64_t h = head * group; h < (head + 1) * group; ++h) {
          sum += logit(weight_, h, d, q.row(i) + h * d, offset_);
        }
        const int64_t at = i * heads.n_kv_heads + head;
        joins[at] = logit(merge_, head, d, k.row(i) + head * d, -offset_) > 0 ? 1 : 0;
        weights[at] = sigmoid(sum / static_cast<float>(group)) + kLeastWeight;
      }
    }
  }

  void clear(int64_t d_head, MatrixView<float> heads) const override {
    if (is_linear_) return;
    for (int64_t i = 0; i < heads.rows; ++i) {
      for (int64_t at = neuron(d_head); at < heads.cols; at += d_head) heads(i, at) = 0;
    }
  }

 private:
  int64_t neuron(int64_t d_head) const { return is_first_ ? 0 : d_head - 1; }
  float logit(const std::vector<float>& linear, int64_t head, int64_t d, const float* x,
              float offset) const {
    if (!is_linear_) return x[neuron(d)] + offset;
    const float* row = linear.data() + head * (d + 1);
    return kernels().dot(row, x, d) + row[d];
  }

  std::string text_;
  int64_t window_;
  float offset_;
  bool is_first_, is_linear_;
  std::vector<float> merge_, weight_;
};

constexpr std::string_view kExamples[] = {"dmc", "dmc(window=0, offset=1)",
                                          "dmc(window=3, decision=first, offset=0.5)",
                                          "dmc(decision=linear)", "dmc(window=0, decision=linear)"};

}  // namespace

extern const KvMergeInfo kv_dmc_merge_info;
const KvMergeInfo kv_dmc_merge_info = {
    .name = "dmc",
    .params = kParams,
    .summary = "a token joins the one before it where a trained head says so (DMC)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<KvMerge>> {
      if (params.word("decision") == "linear" && params.number("offset") != 5) {
        return usage_error("dmc: offset is of logits in heads, and decision=linear has its own");
      }
      return std::make_unique<KvDmc>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
