// SPDX-License-Identifier: Apache-2.0
#include "codecs/trellis_code.h"

#include <array>
#include <cmath>

#include "base/check.h"

namespace quern {
namespace {

struct Row {
  int eighths;  // for rates above the row before, up to this
  int level_bits;
  uint16_t multiplier_low, multiplier_high;
  float spread, mse;
};

constexpr Row kRows[] = {
    {8, 6, 0x7909, 0x51ef, 0.895f, 0.2697f},   {12, 6, 0xb59b, 0x86e7, 0.985f, 0.1390f},
    {16, 6, 0x4249, 0x961d, 1.035f, 0.0690f},  {20, 7, 0x5f81, 0xbe0f, 1.045f, 0.0350f},
    {24, 8, 0xe203, 0x43ed, 1.075f, 0.0174f},  {28, 8, 0x7011, 0x911f, 1.1f, 0.00885f},
    {32, 8, 0x2fef, 0xeca7, 1.135f, 0.00447f}, {36, 8, 0x26af, 0xe855, 1.18f, 0.00231f},
    {40, 8, 0x382b, 0xdcc5, 1.24f, 0.00119f},
};

TrellisCode make_code(int eighths) {
  const Row* row = kRows;
  while (row->eighths < eighths) ++row;
  TrellisCode code{eighths,
                   row->level_bits,
                   static_cast<int16_t>(row->multiplier_low),
                   static_cast<int16_t>(row->multiplier_high),
                   0,
                   row->spread,
                   row->mse * std::exp2(static_cast<float>(row->eighths - eighths) / 4),
                   {}};
  const int8_t* upper = row->level_bits == 6   ? kTrellisLevels64
                        : row->level_bits == 7 ? kTrellisLevels128
                                               : kTrellisLevels256;
  const int half = 1 << (row->level_bits - 1);
  double energy = 0;
  for (int i = 0; i < half; ++i) {
    code.levels[half + i] = upper[i];
    code.levels[half - 1 - i] = static_cast<int8_t>(-upper[i]);
    energy += upper[i] * upper[i];
  }
  code.deviation = static_cast<float>(std::sqrt(energy / half));
  return code;
}

}  // namespace

const TrellisCode& trellis_code(int eighths) {
  QUERN_CHECK(eighths >= 8 && eighths <= 40);
  static const auto codes = [] {
    std::array<TrellisCode, 41> all{};
    for (int i = 8; i <= 40; ++i) all[static_cast<size_t>(i)] = make_code(i);
    return all;
  }();
  return codes[static_cast<size_t>(eighths)];
}

}  // namespace quern
