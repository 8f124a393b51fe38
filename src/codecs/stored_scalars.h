// SPDX-License-Identifier: Apache-2.0
// The side info of scalar codecs: a number or more for each group of a matrix, in one of several
// forms, each with the planes it needs.
//
//   f16     IEEE half; a positive scale is at least the smallest half, 2^-24
//   e8m0    a power of two, 2^(byte - 127); 255 is NaN. Rounds down (the microscaling rule).
//   e4m3    OCP 8-bit float times one f32 of the whole matrix, `unit`
//   nested  QLoRA's double quantisation: a byte into the dynamic map times one f32 `ranges` of each
//           256 consecutive numbers of the matrix, plus, for scales, one f32 `mean` of the matrix
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "codecs/codec.h"
#include "codecs/scalar_table.h"

namespace quern {

enum class ScalarForm : uint8_t { kF16, kE8M0, kE4M3, kNested };
enum class ScalarUse : uint8_t { kScale, kShift };  // a scale is not negative

class StoredScalars {
 public:
  // Planes are named after `stem` and stand from place `first_plane` on.
  StoredScalars(std::string stem, ScalarForm form, ScalarUse use, size_t first_plane);

  void add_planes(int64_t n_out, int64_t per_row, std::vector<PlaneSpec>& planes) const;
  // Writes what the matrix shares, for numbers like `values`, in their order.
  void fit_matrix(std::span<const float> values, const MutableCodes& codes) const;

  // The stored form of a number at place `index` of the matrix, and what it says there.
  uint16_t round(const CodesView& codes, int64_t index, double value) const;
  float value(const CodesView& codes, int64_t index, uint16_t stored) const;

  void store(const MutableCodes& codes, int64_t index, uint16_t stored) const;
  float load(const CodesView& codes, int64_t index) const;
  // Of numbers [index, index + n); a half that is NaN becomes quiet.
  void load(const CodesView& codes, int64_t index, int64_t n, float* dst) const;

 private:
  std::string stem_;
  ScalarForm form_;
  ScalarUse use_;
  size_t first_plane_;
  const ScalarTable* table_ = nullptr;  // of 256 values, for kE4M3 and kNested
};

// The 256 values of the dynamic map (bitsandbytes), rising: 0, 1, and for i = 0 .. 6 the midpoints
// of 2^i equal parts of [0.1, 1] times 10^(i - 6), with both signs.
std::vector<float> dynamic_map();

}  // namespace quern
