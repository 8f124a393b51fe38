// SPDX-License-Identifier: Apache-2.0
#include "codecs/stored_scalars.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "base/float_types.h"
#include "codecs/small_float.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr int64_t kRun = 256;  // numbers that share a range
constexpr float kHighestE4M3 = 448;

const ScalarTable& e4m3_table() {
  static const ScalarTable table(8, small_float_levels(4, 3));
  return table;
}

const ScalarTable& dynamic_table() {
  static const ScalarTable table(8, dynamic_map());
  return table;
}

float f32_at(const CodesView& codes, size_t plane, int64_t index) {
  float value;
  std::memcpy(&value, codes.planes[plane] + index * 4, 4);
  return value;
}

void put_f32(const MutableCodes& codes, size_t plane, int64_t index, double value) {
  const auto single =
      static_cast<float>(std::clamp(value, -0x1.fffffep127, 0x1.fffffep127));  // finite
  std::memcpy(codes.planes[plane] + index * 4, &single, 4);
}

uint16_t round_f16(double value, ScalarUse use) {
  const auto single = static_cast<float>(std::clamp(value, -65504.0, 65504.0));
  const uint16_t half = float_to_f16(single);
  return use == ScalarUse::kScale && value > 0 ? std::max<uint16_t>(half, 1) : half;
}

// floor(log2 value) from the exponent of the number, which log2 may misround.
uint16_t round_e8m0(double value) {
  if (!(value > 0)) return 0;
  return static_cast<uint16_t>(std::clamp(std::ilogb(value) + 127, 0, 254));
}

float e8m0_value(uint16_t stored) {
  if (stored == 0) return 0x1p-127f;
  return std::bit_cast<float>(stored == 255 ? 0x7fc00000u : uint32_t{stored} << 23);
}

}  // namespace

std::vector<float> dynamic_map() {
  constexpr double kPowers[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
  std::vector<float> map = {0, 1};
  for (int i = 0; i < 7; ++i) {
    const int n = 1 << i;
    for (int k = 0; k < n; ++k) {
      const auto middle = static_cast<float>((0.1 + 0.9 * (k + 0.5) / n) * kPowers[i]);
      map.push_back(middle);
      map.push_back(-middle);
    }
  }
  std::sort(map.begin(), map.end());
  return map;
}

StoredScalars::StoredScalars(std::string stem, ScalarForm form, ScalarUse use, size_t first_plane)
    : stem_(std::move(stem)), form_(form), use_(use), first_plane_(first_plane) {
  if (form_ == ScalarForm::kE4M3) table_ = &e4m3_table();
  if (form_ == ScalarForm::kNested) table_ = &dynamic_table();
}

void StoredScalars::add_planes(int64_t n_out, int64_t per_row,
                               std::vector<PlaneSpec>& planes) const {
  const Shape shape = {n_out, per_row};
  const std::string name = stem_ + "s";
  switch (form_) {
    case ScalarForm::kF16:
      planes.push_back({name, DType::kF16, shape});
      break;
    case ScalarForm::kE8M0:
      planes.push_back({name, DType::kF8E8M0, shape});
      break;
    case ScalarForm::kE4M3:
      planes.push_back({name, DType::kF8E4M3, shape});
      planes.push_back({stem_ + "_unit", DType::kF32, {1}});
      break;
    case ScalarForm::kNested:
      planes.push_back({name, DType::kU8, shape});
      planes.push_back({stem_ + "_ranges", DType::kF32, {ceil_div(n_out * per_row, kRun)}});
      if (use_ == ScalarUse::kScale) planes.push_back({stem_ + "_mean", DType::kF32, {1}});
      break;
  }
}

void StoredScalars::fit_matrix(std::span<const float> values, const MutableCodes& codes) const {
  if (form_ == ScalarForm::kE4M3) {
    double largest = 0;
    for (const float value : values) largest = std::max(largest, std::abs(double{value}));
    put_f32(codes, first_plane_ + 1, 0, largest / kHighestE4M3);
  }
  if (form_ != ScalarForm::kNested) return;
  double mean = 0;
  if (use_ == ScalarUse::kScale) {
    for (const float value : values) mean += value;
    mean /= std::max<double>(1, static_cast<double>(values.size()));
    put_f32(codes, first_plane_ + 2, 0, mean);
    mean = f32_at(codes, first_plane_ + 2, 0);
  }
  for (size_t run = 0; run * kRun < values.size(); ++run) {
    double range = 0;
    for (size_t i = run * kRun; i < std::min(values.size(), (run + 1) * kRun); ++i) {
      range = std::max(range, std::abs(values[i] - mean));
    }
    put_f32(codes, first_plane_ + 1, static_cast<int64_t>(run), range);
  }
}

uint16_t StoredScalars::round(const CodesView& codes, int64_t index, double value) const {
  switch (form_) {
    case ScalarForm::kF16:
      return round_f16(value, use_);
    case ScalarForm::kE8M0:
      return round_e8m0(value);
    case ScalarForm::kE4M3: {
      const double unit = f32_at(codes, first_plane_ + 1, 0);
      if (!(value > 0 && unit > 0)) return 0;
      const double x = std::min(value / unit, static_cast<double>(kHighestE4M3));
      return static_cast<uint16_t>(std::max(1u, table_->nearest(static_cast<float>(x))));
    }
    case ScalarForm::kNested: {
      const double range = f32_at(codes, first_plane_ + 1, index / kRun);
      const double mean = use_ == ScalarUse::kScale ? f32_at(codes, first_plane_ + 2, 0) : 0;
      const double x = range > 0 ? (value - mean) / range : 0;
      return static_cast<uint16_t>(table_->nearest(static_cast<float>(x)));
    }
  }
  return 0;
}

float StoredScalars::value(const CodesView& codes, int64_t index, uint16_t stored) const {
  switch (form_) {
    case ScalarForm::kF16:
      return f16_to_float(stored);
    case ScalarForm::kE8M0:
      return e8m0_value(stored);
    case ScalarForm::kE4M3:
      return table_->level(stored) * f32_at(codes, first_plane_ + 1, 0);
    case ScalarForm::kNested: {
      const float scaled = table_->level(stored) * f32_at(codes, first_plane_ + 1, index / kRun);
      return use_ == ScalarUse::kScale ? scaled + f32_at(codes, first_plane_ + 2, 0) : scaled;
    }
  }
  return 0;
}

void StoredScalars::store(const MutableCodes& codes, int64_t index, uint16_t stored) const {
  std::byte* plane = codes.planes[first_plane_];
  if (form_ == ScalarForm::kF16) {
    std::memcpy(plane + index * 2, &stored, 2);
  } else {
    plane[index] = static_cast<std::byte>(stored);
  }
}

float StoredScalars::load(const CodesView& codes, int64_t index) const {
  const std::byte* plane = codes.planes[first_plane_];
  uint16_t stored = 0;
  if (form_ == ScalarForm::kF16) {
    std::memcpy(&stored, plane + index * 2, 2);
  } else {
    stored = std::to_integer<uint16_t>(plane[index]);
  }
  return value(codes, index, stored);
}

void StoredScalars::load(const CodesView& codes, int64_t index, int64_t n, float* dst) const {
  if (form_ == ScalarForm::kF16) {
    kernels().f16_to_float(codes.planes[first_plane_] + index * 2, n, dst);
    return;
  }
  for (int64_t i = 0; i < n; ++i) dst[i] = load(codes, index + i);
}

}  // namespace quern
