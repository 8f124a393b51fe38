// SPDX-License-Identifier: Apache-2.0
// Signs and Hadamard matrices, within stretches and across heads: operators that a few numbers
// describe.
#include <bit>

#include "base/digest.h"
#include "base/random.h"
#include "kernels/hadamard.h"
#include "kernels/kernels.h"
#include "tensor/matrix.h"
#include "transforms/operator.h"

namespace quern {
namespace {

// x_j <- +-x_j. The signs are drawn from a seed; a digest in the file proves that reader and
// writer drew the same.
class Signs final : public Operator {
 public:
  Signs(int64_t size, uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {
    Random random(seed, stream);
    signs_.resize(static_cast<size_t>(size));
    for (float& sign : signs_) sign = static_cast<float>(random.sign());
  }
  OperatorKind kind() const override { return OperatorKind::kSigns; }
  bool is_orthogonal() const override { return true; }
  int64_t size() const override { return static_cast<int64_t>(signs_.size()); }
  void apply(float* x, int64_t count) const override { flip(x, count); }
  void apply(double* x, int64_t count) const override { flip(x, count); }
  void apply_to(const float* x, int64_t count, float* y) const override {
    for (int64_t i = 0; i < count; i += size()) {
      kernels().multiply(x + i, signs_.data(), size(), y + i);
    }
  }
  void apply_inverse(float* x, int64_t count) const override { flip(x, count); }
  void apply_inverse(double* x, int64_t count) const override { flip(x, count); }
  int64_t flops() const override { return size(); }
  int64_t bytes() const override { return size() * static_cast<int64_t>(sizeof(float)); }
  const float* data() const { return signs_.data(); }
  std::string digest() const {
    std::string bytes;
    for (const float sign : signs_) bytes += static_cast<char>(sign);
    return digest_of(bytes);
  }
  Json to_json() const override {
    return {{"op", "signs"},
            {"size", size()},
            {"seed", seed_},
            {"stream", stream_},
            {"digest", digest()}};
  }

 private:
  void flip(float* x, int64_t count) const { apply_to(x, count, x); }
  void flip(double* x, int64_t count) const {
    for (int64_t start = 0; start < count; start += size()) {
      for (int64_t j = 0; j < size(); ++j) x[start + j] *= signs_[static_cast<size_t>(j)];
    }
  }
  uint64_t seed_, stream_;
  AlignedVector<float> signs_;
};

class HadamardOperator final : public Operator {
 public:
  explicit HadamardOperator(HadamardPlan plan) : plan_(std::move(plan)) {}
  bool is_orthogonal() const override { return true; }
  int64_t size() const override { return plan_.n(); }
  void apply(float* x, int64_t count) const override { plan_.apply_rows(rows(x, count)); }
  void apply(double* x, int64_t count) const override { plan_.apply_rows(rows(x, count)); }
  void apply_to(const float* x, int64_t count, float* y) const override {
    plan_.apply_rows(rows(x, count), rows(y, count));
  }
  void apply_inverse(float* x, int64_t count) const override {
    plan_.apply_rows_transposed(rows(x, count));
  }
  void apply_inverse(double* x, int64_t count) const override {
    plan_.apply_rows_transposed(rows(x, count));
  }
  int64_t bytes() const override { return plan_.k() > 1 ? plan_.k() * plan_.k() : 0; }
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
  OperatorPtr joined(const OperatorPtr& before) const override;
  const HadamardPlan& plan() const { return plan_; }

 private:
  template <class T>
  MatrixView<T> rows(T* x, int64_t count) const {
    return {x, count / size(), size()};
  }
  HadamardPlan plan_;
};

// Signs, then Hadamard matrices, in the passes of the latter.
class SignedHadamard final : public Operator {
 public:
  SignedHadamard(std::shared_ptr<const Signs> signs, HadamardPlan plan)
      : signs_(std::move(signs)), plan_(std::move(plan)) {}
  bool is_orthogonal() const override { return true; }
  int64_t size() const override { return signs_->size(); }
  void apply(float* x, int64_t count) const override { apply_to(x, count, x); }
  void apply_to(const float* x, int64_t count, float* y) const override {
    for (int64_t i = 0; i < count; i += plan_.n()) {
      plan_.apply_signed_rows({x + i, 1, plan_.n()}, signs_->data() + i % size(),
                              {y + i, 1, plan_.n()});
    }
  }
  void apply(double* x, int64_t count) const override {
    signs_->apply(x, count);
    plan_.apply_rows({x, count / plan_.n(), plan_.n()});
  }
  void apply_inverse(float* x, int64_t count) const override { undo(x, count); }
  void apply_inverse(double* x, int64_t count) const override { undo(x, count); }
  int64_t bytes() const override { return signs_->bytes(); }
  int64_t flops() const override { return signs_->flops(); }
  Json to_json() const override { return {}; }  // no file holds it

 private:
  template <class T>
  void undo(T* x, int64_t count) const {
    plan_.apply_rows_transposed(MatrixView<T>(x, count / plan_.n(), plan_.n()));
    signs_->apply_inverse(x, count);
  }
  std::shared_ptr<const Signs> signs_;
  HadamardPlan plan_;
};

OperatorPtr HadamardOperator::joined(const OperatorPtr& before) const {
  if (before->kind() != OperatorKind::kSigns || before->size() % size() != 0) return nullptr;
  return std::make_shared<SignedHadamard>(std::static_pointer_cast<const Signs>(before), plan_);
}

// (Had_heads (x) I): mixes the heads, entry by entry. Together with a Hadamard within each head it
// is Had_heads (x) Had_d_head, which no single order for the product may replace.
class HeadAxis final : public Operator {
 public:
  HeadAxis(HadamardPlan plan, int64_t d_head) : plan_(std::move(plan)), d_head_(d_head) {}
  bool is_orthogonal() const override { return true; }
  int64_t size() const override { return plan_.n() * d_head_; }
  void apply(float* x, int64_t count) const override { plan_.apply_heads(rows(x, count), d_head_); }
  void apply(double* x, int64_t count) const override {
    plan_.apply_heads(rows(x, count), d_head_);
  }
  void apply_to(const float* x, int64_t count, float* y) const override {
    plan_.apply_heads(rows(x, count), d_head_, rows(y, count));
  }
  void apply_inverse(float* x, int64_t count) const override {
    plan_.apply_heads_transposed(rows(x, count), d_head_);
  }
  void apply_inverse(double* x, int64_t count) const override {
    plan_.apply_heads_transposed(rows(x, count), d_head_);
  }
  int64_t flops() const override { return size() * plan_.n(); }
  int64_t bytes() const override { return plan_.k() > 1 ? plan_.k() * plan_.k() : 0; }
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
  QUERN_ASSIGN(const int64_t k, json_int(json, "k", 1, kMaxOperatorSize));
  QUERN_ASSIGN(const std::string construction, json_string(json, "construction"));
  return HadamardPlan::make_as(size, k, construction);
}

Result<OperatorPtr> read_signs(const Json& json, const FindTensor&) {
  constexpr int64_t kAny = int64_t{1} << 53;
  QUERN_ASSIGN(const int64_t size, json_int(json, "size", 1, kMaxOperatorSize));
  QUERN_ASSIGN(const int64_t seed, json_int(json, "seed", 0, kAny));
  QUERN_ASSIGN(const int64_t stream, json_int(json, "stream", 0, kAny));
  QUERN_ASSIGN(const std::string digest, json_string(json, "digest"));
  auto signs =
      std::make_shared<Signs>(size, static_cast<uint64_t>(seed), static_cast<uint64_t>(stream));
  if (signs->digest() != digest) {
    return error("basis: signs have digest {}, expected {}", signs->digest(), digest);
  }
  return signs;
}

Result<OperatorPtr> read_hadamard(const Json& json, const FindTensor&) {
  QUERN_ASSIGN(const int64_t size, json_int(json, "size", 1, kMaxOperatorSize));
  QUERN_ASSIGN(HadamardPlan plan, plan_from_json(json, size));
  return std::make_shared<HadamardOperator>(std::move(plan));
}

Result<OperatorPtr> read_head_axis(const Json& json, const FindTensor&) {
  QUERN_ASSIGN(const int64_t heads, json_int(json, "heads", 1, 1 << 16));
  QUERN_ASSIGN(const int64_t d_head, json_int(json, "d_head", 1, 1 << 16));
  if (heads * d_head > kMaxOperatorSize) {
    return error("basis: head_axis of {} heads is too large", heads);
  }
  QUERN_ASSIGN(HadamardPlan plan, plan_from_json(json, heads));
  return std::make_shared<HeadAxis>(std::move(plan), d_head);
}

}  // namespace

extern const OperatorInfo signs_operator_info, hadamard_operator_info, head_axis_operator_info;
const OperatorInfo signs_operator_info = {"signs", read_signs};
const OperatorInfo hadamard_operator_info = {"hadamard", read_hadamard};
const OperatorInfo head_axis_operator_info = {"head_axis", read_head_axis};

OperatorPtr make_signs(int64_t size, uint64_t seed, uint64_t stream) {
  return std::make_shared<Signs>(size, seed, stream);
}

Result<OperatorPtr> make_hadamard(int64_t size) {
  QUERN_ASSIGN(HadamardPlan plan, HadamardPlan::make(size));
  return std::make_shared<HadamardOperator>(std::move(plan));
}

Result<OperatorPtr> make_head_axis(int64_t n_heads, int64_t d_head) {
  QUERN_ASSIGN(HadamardPlan plan, HadamardPlan::make(n_heads));
  return std::make_shared<HeadAxis>(std::move(plan), d_head);
}

}  // namespace quern
