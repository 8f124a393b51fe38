// SPDX-License-Identifier: Apache-2.0
#include "transforms/basis.h"

#include <fmt/format.h>

#include <bit>

#include "base/digest.h"
#include "base/random.h"
#include "kernels/hadamard.h"

namespace quern {
namespace {

constexpr std::string_view kSiteNames[kSites] = {"residual", "value", "heads", "qk", "ffn"};
constexpr int64_t kMaxSize = int64_t{1} << 24;
// Of one site. An operator read from a file may take tens of megabytes before its size is compared
// with the model's.
constexpr size_t kMaxOperators = 8;

// x_j <- +-x_j. The signs are drawn from a seed; a digest in the file proves that reader and
// writer drew the same.
class Signs final : public Operator {
 public:
  Signs(int64_t size, uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {
    Random random(seed, stream);
    signs_.resize(static_cast<size_t>(size));
    for (int8_t& sign : signs_) sign = static_cast<int8_t>(random.sign());
  }
  int64_t size() const override { return static_cast<int64_t>(signs_.size()); }
  void apply(float* x, int64_t count) const override { flip(x, count); }
  void apply(double* x, int64_t count) const override { flip(x, count); }
  void apply_inverse(float* x, int64_t count) const override { flip(x, count); }
  void apply_inverse(double* x, int64_t count) const override { flip(x, count); }
  int64_t flops() const override { return size(); }
  std::string digest() const {
    return digest_of({reinterpret_cast<const char*>(signs_.data()), signs_.size()});
  }
  Json to_json() const override {
    return {{"op", "signs"},
            {"size", size()},
            {"seed", seed_},
            {"stream", stream_},
            {"digest", digest()}};
  }

 private:
  template <class T>
  void flip(T* x, int64_t count) const {
    for (int64_t start = 0; start < count; start += size()) {
      for (int64_t j = 0; j < size(); ++j)
        x[start + j] *= static_cast<T>(signs_[static_cast<size_t>(j)]);
    }
  }
  uint64_t seed_, stream_;
  std::vector<int8_t> signs_;
};

class HadamardOperator final : public Operator {
 public:
  explicit HadamardOperator(HadamardPlan plan) : plan_(std::move(plan)) {}
  int64_t size() const override { return plan_.n(); }
  void apply(float* x, int64_t count) const override { plan_.apply_rows(rows(x, count)); }
  void apply(double* x, int64_t count) const override { plan_.apply_rows(rows(x, count)); }
  void apply_inverse(float* x, int64_t count) const override {
    plan_.apply_rows_transposed(rows(x, count));
  }
  void apply_inverse(double* x, int64_t count) const override {
    plan_.apply_rows_transposed(rows(x, count));
  }
  int64_t flops() const override {
    const int64_t log2_inner = std::countr_zero(static_cast<uint64_t>(size() / plan_.k()));
    return size() * (log2_inner + (plan_.k() > 1 ? plan_.k() : 0));
  }
  Json to_json() const override {
    return {{"op", "hadamard"},
            {"size", size()},
            {"k", plan_.k()},
            {"construction", plan_.construction()}};
  }

 private:
  template <class T>
  MatrixView<T> rows(T* x, int64_t count) const {
    return {x, count / size(), size()};
  }
  HadamardPlan plan_;
};

// (Had_heads (x) I): mixes the heads, entry by entry. Together with a Hadamard within each head it
// is Had_heads (x) Had_d_head, which no single order for the product may replace.
class HeadAxis final : public Operator {
 public:
  HeadAxis(HadamardPlan plan, int64_t d_head) : plan_(std::move(plan)), d_head_(d_head) {}
  int64_t size() const override { return plan_.n() * d_head_; }
  void apply(float* x, int64_t count) const override { plan_.apply_heads(rows(x, count), d_head_); }
  void apply(double* x, int64_t count) const override {
    plan_.apply_heads(rows(x, count), d_head_);
  }
  void apply_inverse(float* x, int64_t count) const override {
    plan_.apply_heads_transposed(rows(x, count), d_head_);
  }
  void apply_inverse(double* x, int64_t count) const override {
    plan_.apply_heads_transposed(rows(x, count), d_head_);
  }
  int64_t flops() const override { return size() * plan_.n(); }
  Json to_json() const override {
    return {{"op", "head_axis"},
            {"heads", plan_.n()},
            {"d_head", d_head_},
            {"k", plan_.k()},
            {"construction", plan_.construction()}};
  }

 private:
  template <class T>
  MatrixView<T> rows(T* x, int64_t count) const {
    return {x, count / size(), size()};
  }
  HadamardPlan plan_;
  int64_t d_head_;
};

Result<HadamardPlan> plan_from_json(const Json& json, int64_t size) {
  QUERN_ASSIGN(const int64_t k, json_int(json, "k", 1, kMaxSize));
  QUERN_ASSIGN(const std::string construction, json_string(json, "construction"));
  return HadamardPlan::make_as(size, k, construction);
}

Result<std::unique_ptr<Operator>> operator_from_json(const Json& json) {
  if (!json.is_object()) return error("basis: expected an object, got {}", json.type_name());
  QUERN_ASSIGN(const std::string op, json_string(json, "op"));
  if (op == "signs") {
    constexpr int64_t kAny = int64_t{1} << 53;
    QUERN_ASSIGN(const int64_t size, json_int(json, "size", 1, kMaxSize));
    QUERN_ASSIGN(const int64_t seed, json_int(json, "seed", 0, kAny));
    QUERN_ASSIGN(const int64_t stream, json_int(json, "stream", 0, kAny));
    QUERN_ASSIGN(const std::string digest, json_string(json, "digest"));
    auto signs =
        std::make_unique<Signs>(size, static_cast<uint64_t>(seed), static_cast<uint64_t>(stream));
    if (signs->digest() != digest) {
      return error("basis: signs have digest {}, expected {}", signs->digest(), digest);
    }
    return signs;
  }
  if (op == "hadamard") {
    QUERN_ASSIGN(const int64_t size, json_int(json, "size", 1, kMaxSize));
    QUERN_ASSIGN(HadamardPlan plan, plan_from_json(json, size));
    return std::make_unique<HadamardOperator>(std::move(plan));
  }
  if (op == "head_axis") {
    QUERN_ASSIGN(const int64_t heads, json_int(json, "heads", 1, 1 << 16));
    QUERN_ASSIGN(const int64_t d_head, json_int(json, "d_head", 1, 1 << 16));
    if (heads * d_head > kMaxSize) return error("basis: head_axis of {} heads is too large", heads);
    QUERN_ASSIGN(HadamardPlan plan, plan_from_json(json, heads));
    return std::make_unique<HeadAxis>(std::move(plan), d_head);
  }
  return error("basis: no operator '{}'; the operators are signs, hadamard, head_axis", op);
}

}  // namespace

std::string_view site_name(Site site) { return kSiteNames[static_cast<size_t>(site)]; }

std::unique_ptr<Operator> make_signs(int64_t size, uint64_t seed, uint64_t stream) {
  return std::make_unique<Signs>(size, seed, stream);
}

Result<std::unique_ptr<Operator>> make_hadamard(int64_t size) {
  QUERN_ASSIGN(HadamardPlan plan, HadamardPlan::make(size));
  return std::make_unique<HadamardOperator>(std::move(plan));
}

Result<std::unique_ptr<Operator>> make_head_axis(int64_t n_heads, int64_t d_head) {
  QUERN_ASSIGN(HadamardPlan plan, HadamardPlan::make(n_heads));
  return std::make_unique<HeadAxis>(std::move(plan), d_head);
}

bool BasisChange::empty() const {
  for (const Chain& chain : chains_) {
    if (!chain.empty()) return false;
  }
  return true;
}

Json BasisChange::to_json() const {
  Json json = Json::object();
  for (int i = 0; i < kSites; ++i) {
    for (const auto& op : chains_[static_cast<size_t>(i)].operators()) {
      json[std::string(kSiteNames[i])].push_back(op->to_json());
    }
  }
  return json;
}

Result<BasisChange> BasisChange::from_json(const Json& json) {
  if (!json.is_object()) return error("basis: expected an object, got {}", json.type_name());
  BasisChange basis;
  for (const auto& [name, operators] : json.items()) {
    int site = 0;
    while (site < kSites && kSiteNames[site] != name) ++site;
    if (site == kSites) return error("basis: no site '{}'", name);
    if (!operators.is_array()) return error("basis: site '{}' is not a list", name);
    if (operators.size() > kMaxOperators) {
      return error("basis: site '{}' has {} operators, at most {}", name, operators.size(),
                   kMaxOperators);
    }
    for (const Json& op : operators) {
      QUERN_ASSIGN(auto parsed, operator_from_json(op));
      basis.chains_[static_cast<size_t>(site)].add(std::move(parsed));
    }
  }
  return basis;
}

}  // namespace quern
