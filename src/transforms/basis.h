// SPDX-License-Identifier: Apache-2.0
// Orthogonal operators and the sites of a decoder where they may stand.
//
// Convention: activations are rows and an operator maps x -> x M^T. A weight W [n_out, n_in] that
// reads a changed input gets the same map on its rows, W <- W M^T; one that writes into a changed
// basis gets it on its columns, W <- M W. No operator needs to be symmetric for that.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "formats/json.h"

namespace quern {

// An orthogonal operator on consecutive stretches of `size()` values.
class Operator {
 public:
  virtual ~Operator() = default;
  virtual int64_t size() const = 0;
  // In place on `count` values, a multiple of size().
  virtual void apply(float* x, int64_t count) const = 0;
  virtual void apply(double* x, int64_t count) const = 0;
  virtual void apply_inverse(float* x, int64_t count) const = 0;
  virtual void apply_inverse(double* x, int64_t count) const = 0;
  virtual int64_t flops() const = 0;  // of one application to size() values
  virtual Json to_json() const = 0;
};

enum class Site : uint8_t {
  kResidual,  // the stream between layers: online after the embedding and before the final norm
  kValue,     // value and attention output within each head: wholly fused
  kHeads,     // across the heads of the input of o: online
  kQk,        // query and key after RoPE, within each head: online
  kFfn,       // input of down: online
};
constexpr int kSites = 5;
std::string_view site_name(Site site);

// Operators applied one after another.
class Chain {
 public:
  bool empty() const { return operators_.empty(); }
  void add(std::unique_ptr<Operator> op) { operators_.push_back(std::move(op)); }
  const std::vector<std::unique_ptr<Operator>>& operators() const { return operators_; }

  template <class T>
  void apply(T* x, int64_t count) const {
    for (const auto& op : operators_) op->apply(x, count);
  }
  template <class T>
  void apply_inverse(T* x, int64_t count) const {
    for (auto op = operators_.rbegin(); op != operators_.rend(); ++op) {
      (*op)->apply_inverse(x, count);
    }
  }

 private:
  std::vector<std::unique_ptr<Operator>> operators_;
};

// The basis a model is in: one chain per site, the same in every layer.
class BasisChange {
 public:
  const Chain& at(Site site) const { return chains_[static_cast<size_t>(site)]; }
  Chain& at(Site site) { return chains_[static_cast<size_t>(site)]; }
  bool empty() const;
  Json to_json() const;  // {"residual": [{"op": "signs", ...}, ...], ...}
  static Result<BasisChange> from_json(const Json& json);

 private:
  std::array<Chain, kSites> chains_;
};

std::unique_ptr<Operator> make_signs(int64_t size, uint64_t seed, uint64_t stream);
// n = K * 2^p as kernels/hadamard.h constructs it; fails when no construction is known.
Result<std::unique_ptr<Operator>> make_hadamard(int64_t size);
// Hadamard over the head axis of [n_heads, d_head].
Result<std::unique_ptr<Operator>> make_head_axis(int64_t n_heads, int64_t d_head);

}  // namespace quern
