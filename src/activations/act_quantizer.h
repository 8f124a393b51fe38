// SPDX-License-Identifier: Apache-2.0
// How the inputs of a coded matrix are rounded: rows of activations onto a grid, one row at a time,
// so that no row depends on its company. What a recipe's `act(...)` names, what a model's file
// states per matrix, and what its products are computed from.
//
// A quantizer either gives integers, which meet the weights in int8 (kernels/panels.h), or floats
// of a coarser grid, which meet them in float.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "spec/params.h"

namespace quern {

enum class ActForm : uint8_t { kLevels, kValues };

// One row in the form of Int8Rows (kernels/panels.h), with scales and offsets for each group of
// `group` columns of the weights.
struct ActLevels {
  int64_t group;
  int8_t* levels;    // [groups * group]
  float* scales;     // [groups]
  int32_t* offsets;  // [groups]
};

class ActQuantizer {
 public:
  virtual ~ActQuantizer() = default;
  virtual std::string spec() const = 0;  // canonical text: "int(4, clip=0.9)"
  virtual ActForm form() const = 0;
  // Whether rows of n_in columns can meet weights whose scales are for `panel_group` columns.
  virtual Status check(int64_t n_in, int64_t panel_group) const = 0;

  // Scales that calibration fixes: how many numbers a matrix of n_in columns keeps for them; 0:
  // each row has scales of its own. And those numbers, given the least and the largest input of
  // each column, not above and not below zero.
  virtual int64_t n_ranges(int64_t /*n_in*/) const { return 0; }
  virtual std::vector<float> ranges(std::span<const float> /*low*/,
                                    std::span<const float> /*high*/) const {
    return {};
  }

  // Rounds x[n]. `ranges` as above. Only of kLevels. A scale of a row that is not finite is NaN.
  virtual void levels(const float* x, int64_t n, std::span<const float> ranges,
                      const ActLevels& out) const = 0;
  // y[n]: what the rounded row means; y may be x.
  virtual void values(const float* x, int64_t n, std::span<const float> ranges, float* y) const = 0;
};

// A quantizer with what calibration found for one matrix.
struct ActRounding {
  std::shared_ptr<const ActQuantizer> act;
  std::vector<float> ranges;  // [act->n_ranges(n_in)]

  void values(const float* x, int64_t n, float* y) const { act->values(x, n, ranges, y); }
  bool operator==(const ActRounding&) const = default;
};

struct ActInfo {
  std::string_view name;
  spec::ParamSpecs params;
  std::string_view summary;
  Result<std::unique_ptr<ActQuantizer>> (*make)(const spec::Params& params);
  std::span<const std::string_view> examples;  // texts that tests walk
};

std::span<const ActInfo> act_quantizers();  // the rows of list.inc
Result<std::unique_ptr<ActQuantizer>> make_act(const spec::Call& call);
Result<std::unique_ptr<ActQuantizer>> make_act(std::string_view text);

// Refuses ranges that a file must not hold: another number than n_ranges, or what is not finite.
Status check_ranges(const ActQuantizer& act, int64_t n_in, std::span<const float> ranges);

}  // namespace quern
