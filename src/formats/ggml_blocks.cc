// SPDX-License-Identifier: Apache-2.0
// Each decoder is the type's definition written as a loop over one block; q is an integer code,
// d, m, dmin are halves. "run" is a stretch of weights that share bytes.
//
//   Q4_0 Q5_0 Q8_0      d (q - offset)          blocks of 32
//   Q4_1 Q5_1           d q + m                 blocks of 32
//   Q2_K Q4_K Q5_K      d sc q - dmin mn        blocks of 256, sub-blocks of 16 or 32
//   Q3_K Q6_K           d (sc - offset)(q - offset)
//   IQ4_NL IQ4_XS       table lookup, d T[q] and d (sc - 32) T[q]
//   TQ2_0               d (q - 1)
//   MXFP4               2^(e - 127) E2M1[q]
#include "formats/ggml_blocks.h"

#include <bit>
#include <string>
#include <vector>

#include "base/float_types.h"

namespace quern {
namespace {

constexpr int8_t kIq4Table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
constexpr int8_t kE2m1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

int byte_at(const std::byte* src, int64_t i) { return std::to_integer<int>(src[i]); }
int signed_at(const std::byte* src, int64_t i) { return static_cast<int8_t>(src[i]); }
uint16_t u16_at(const std::byte* src) {
  return static_cast<uint16_t>(byte_at(src, 0) | byte_at(src, 1) << 8);
}
float half_at(const std::byte* src) { return f16_to_float(u16_at(src)); }
uint32_t u32_at(const std::byte* src) {
  return u16_at(src) | static_cast<uint32_t>(u16_at(src + 2)) << 16;
}

template <DType kType>
void plain(const std::byte* src, int64_t n, float* dst) {
  convert_to_float(kType, src, n, dst);
}

// Applies a decoder of one block to a row.
template <int64_t kWeights, int64_t kBytes, void (*decode)(const std::byte*, float*)>
void blocks(const std::byte* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n / kWeights; ++i) decode(src + i * kBytes, dst + i * kWeights);
}

// ---- blocks of 32; byte j of the nibbles holds weight j (low) and j + 16 (high)

void q4_0(const std::byte* src, float* dst) {
  const float d = half_at(src);
  for (int j = 0; j < 16; ++j) {
    const int q = byte_at(src, 2 + j);
    dst[j] = d * static_cast<float>((q & 15) - 8);
    dst[j + 16] = d * static_cast<float>((q >> 4) - 8);
  }
}

void q4_1(const std::byte* src, float* dst) {
  const float d = half_at(src), m = half_at(src + 2);
  for (int j = 0; j < 16; ++j) {
    const int q = byte_at(src, 4 + j);
    dst[j] = d * static_cast<float>(q & 15) + m;
    dst[j + 16] = d * static_cast<float>(q >> 4) + m;
  }
}

int q5_code(int nibble, uint32_t high, int j) {
  return nibble | static_cast<int>(high >> j & 1) << 4;
}

void q5_0(const std::byte* src, float* dst) {
  const float d = half_at(src);
  const uint32_t high = u32_at(src + 2);
  for (int j = 0; j < 16; ++j) {
    const int q = byte_at(src, 6 + j);
    dst[j] = d * static_cast<float>(q5_code(q & 15, high, j) - 16);
    dst[j + 16] = d * static_cast<float>(q5_code(q >> 4, high, j + 16) - 16);
  }
}

void q5_1(const std::byte* src, float* dst) {
  const float d = half_at(src), m = half_at(src + 2);
  const uint32_t high = u32_at(src + 4);
  for (int j = 0; j < 16; ++j) {
    const int q = byte_at(src, 8 + j);
    dst[j] = d * static_cast<float>(q5_code(q & 15, high, j)) + m;
    dst[j + 16] = d * static_cast<float>(q5_code(q >> 4, high, j + 16)) + m;
  }
}

void q8_0(const std::byte* src, float* dst) {
  const float d = half_at(src);
  for (int j = 0; j < 32; ++j) dst[j] = d * static_cast<float>(signed_at(src, 2 + j));
}

void iq4_nl(const std::byte* src, float* dst) {
  const float d = half_at(src);
  for (int j = 0; j < 16; ++j) {
    const int q = byte_at(src, 2 + j);
    dst[j] = d * static_cast<float>(kIq4Table[q & 15]);
    dst[j + 16] = d * static_cast<float>(kIq4Table[q >> 4]);
  }
}

void mxfp4(const std::byte* src, float* dst) {
  // Half of 2^(e - 127), to go with doubled E2M1 values; e < 2 gives a subnormal.
  const uint32_t e = static_cast<uint32_t>(byte_at(src, 0));
  const float d = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
  for (int j = 0; j < 16; ++j) {
    const int q = byte_at(src, 1 + j);
    dst[j] = d * static_cast<float>(kE2m1Doubled[q & 15]);
    dst[j + 16] = d * static_cast<float>(kE2m1Doubled[q >> 4]);
  }
}

// ---- blocks of 256

// Scales (low nibbles) and mins (high) [16], codes [64], d, dmin. A run of 128 weights uses 32
// bytes: weight 32 k + l is bit pair k of byte l.
void q2_k(const std::byte* src, float* dst) {
  const std::byte* codes = src + 16;
  const float d = half_at(src + 80), dmin = half_at(src + 82);
  for (int i = 0; i < 256; ++i) {
    const int run = i / 128, k = i % 128 / 32, l = i % 32;
    const int side = byte_at(src, i / 16), q = byte_at(codes, 32 * run + l) >> 2 * k & 3;
    const float scale = d * static_cast<float>(side & 15);
    const float offset = dmin * static_cast<float>(side >> 4);
    dst[i] = scale * static_cast<float>(q) - offset;
  }
}

// Mask of third bits [32], low two bits [64] (as Q2_K), 16 six-bit scales [12], d. Scale j has its
// low nibble in byte j % 8 (low half for j < 8) and its high pair j / 4 in byte 8 + j % 4.
void q3_k(const std::byte* src, float* dst) {
  const std::byte *codes = src + 32, *scales = src + 96;
  const float d = half_at(src + 108);
  for (int i = 0; i < 256; ++i) {
    const int run = i / 128, k = i % 128 / 32, l = i % 32, j = i / 16;
    const int low = byte_at(scales, j % 8) >> (j < 8 ? 0 : 4) & 15;
    const int high = byte_at(scales, 8 + j % 4) >> 2 * (j / 4) & 3;
    const int q = byte_at(codes, 32 * run + l) >> 2 * k & 3;
    const bool third = (byte_at(src, l) >> (4 * run + k) & 1) != 0;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    dst[i] = scale * static_cast<float>(q - (third ? 0 : 4));
  }
}

struct ScaleMin {
  int scale, min;
};

// Sub-block j of the twelve bytes that pack eight six-bit scales and eight six-bit mins.
ScaleMin scale_min(const std::byte* packed, int j) {
  if (j < 4) return {byte_at(packed, j) & 63, byte_at(packed, j + 4) & 63};
  const int low = byte_at(packed, j + 4);
  return {(low & 15) | byte_at(packed, j - 4) >> 6 << 4, low >> 4 | byte_at(packed, j) >> 6 << 4};
}

// d, dmin, scales and mins [12], nibbles [128]: a run of 64 weights uses 32 bytes, first half low.
void q4_k(const std::byte* src, float* dst) {
  const float d = half_at(src), dmin = half_at(src + 2);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin side = scale_min(src + 4, j);
    const float scale = d * static_cast<float>(side.scale);
    const float offset = dmin * static_cast<float>(side.min);
    for (int l = 0; l < 32; ++l) {
      const int q = byte_at(src, 16 + 32 * (j / 2) + l) >> 4 * (j % 2) & 15;
      dst[32 * j + l] = scale * static_cast<float>(q) - offset;
    }
  }
}

// As Q4_K with fifth bits [32] before the nibbles: bit j of byte l belongs to sub-block j.
void q5_k(const std::byte* src, float* dst) {
  const float d = half_at(src), dmin = half_at(src + 2);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin side = scale_min(src + 4, j);
    const float scale = d * static_cast<float>(side.scale);
    const float offset = dmin * static_cast<float>(side.min);
    for (int l = 0; l < 32; ++l) {
      const int low = byte_at(src, 48 + 32 * (j / 2) + l) >> 4 * (j % 2) & 15;
      const int q = low | (byte_at(src, 16 + l) >> j & 1) << 4;
      dst[32 * j + l] = scale * static_cast<float>(q) - offset;
    }
  }
}

// Low nibbles [128], high pairs [64], signed scales [16], d. Quarter k of a run of 128 weights
// takes nibble k / 2 of bytes 32 (k % 2) + l and pair k of byte l.
void q6_k(const std::byte* src, float* dst) {
  const float d = half_at(src + 208);
  for (int i = 0; i < 256; ++i) {
    const int run = i / 128, k = i % 128 / 32, l = i % 32;
    const int low = byte_at(src, 64 * run + 32 * (k % 2) + l) >> 4 * (k / 2) & 15;
    const int high = byte_at(src, 128 + 32 * run + l) >> 2 * k & 3;
    const float scale = d * static_cast<float>(signed_at(src, 192 + i / 16));
    dst[i] = scale * static_cast<float>((low | high << 4) - 32);
  }
}

// d, high scale pairs u16, low scale nibbles [4], nibbles [128] in sub-blocks of 32 as IQ4_NL.
void iq4_xs(const std::byte* src, float* dst) {
  const float d = half_at(src);
  const int high = u16_at(src + 2);
  for (int j = 0; j < 8; ++j) {
    const int low = byte_at(src, 4 + j / 2) >> 4 * (j % 2) & 15;
    const float scale = d * static_cast<float>((low | (high >> 2 * j & 3) << 4) - 32);
    for (int l = 0; l < 16; ++l) {
      const int q = byte_at(src, 8 + 16 * j + l);
      dst[32 * j + l] = scale * static_cast<float>(kIq4Table[q & 15]);
      dst[32 * j + l + 16] = scale * static_cast<float>(kIq4Table[q >> 4]);
    }
  }
}

// Codes [64] in runs of 128 as Q2_K, d.
void tq2_0(const std::byte* src, float* dst) {
  const float d = half_at(src + 64);
  for (int i = 0; i < 256; ++i) {
    const int q = byte_at(src, 32 * (i / 128) + i % 32) >> 2 * (i % 128 / 32) & 3;
    dst[i] = d * static_cast<float>(q - 1);
  }
}

// Ids 4, 5, 31 to 33 and 36 to 38 are retired; ids from 97 on belong to a fork.
constexpr GgmlType kTypes[] = {
    {0, "F32", 1, 4, DType::kF32, plain<DType::kF32>},
    {1, "F16", 1, 2, DType::kF16, plain<DType::kF16>},
    {2, "Q4_0", 32, 18, {}, blocks<32, 18, q4_0>},
    {3, "Q4_1", 32, 20, {}, blocks<32, 20, q4_1>},
    {6, "Q5_0", 32, 22, {}, blocks<32, 22, q5_0>},
    {7, "Q5_1", 32, 24, {}, blocks<32, 24, q5_1>},
    {8, "Q8_0", 32, 34, {}, blocks<32, 34, q8_0>},
    {9, "Q8_1", 32, 36},
    {10, "Q2_K", 256, 84, {}, blocks<256, 84, q2_k>},
    {11, "Q3_K", 256, 110, {}, blocks<256, 110, q3_k>},
    {12, "Q4_K", 256, 144, {}, blocks<256, 144, q4_k>},
    {13, "Q5_K", 256, 176, {}, blocks<256, 176, q5_k>},
    {14, "Q6_K", 256, 210, {}, blocks<256, 210, q6_k>},
    {15, "Q8_K", 256, 292},
    {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98},
    {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18, {}, blocks<32, 18, iq4_nl>},
    {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136, {}, blocks<256, 136, iq4_xs>},
    {24, "I8", 1, 1, DType::kI8},
    {25, "I16", 1, 2, DType::kI16},
    {26, "I32", 1, 4, DType::kI32},
    {27, "I64", 1, 8, DType::kI64},
    {28, "F64", 1, 8, DType::kF64, plain<DType::kF64>},
    {29, "IQ1_M", 256, 56},
    {30, "BF16", 1, 2, DType::kBF16, plain<DType::kBF16>},
    {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66, {}, blocks<256, 66, tq2_0>},
    {39, "MXFP4", 32, 17, {}, blocks<32, 17, mxfp4>},
    {40, "NVFP4", 64, 36},
    {41, "Q1_0", 128, 18},
    {42, "Q2_0", 64, 18},
};

}  // namespace

const GgmlType* find_ggml_type(uint32_t id) {
  for (const GgmlType& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

const GgmlType* find_ggml_type(DType dtype) {
  for (const GgmlType& type : kTypes) {
    if (type.dtype == dtype) return &type;
  }
  return nullptr;
}

namespace {

Result<const GgmlType*> decoded_type(const TensorInfo& tensor) {
  const GgmlType* type =
      tensor.block_type != 0 ? find_ggml_type(tensor.block_type) : find_ggml_type(tensor.dtype);
  if (type != nullptr && type->dequantize != nullptr) return type;
  std::string known;
  for (const GgmlType& row : kTypes) {
    if (row.dequantize != nullptr) known += fmt::format("{}{}", known.empty() ? "" : " ", row.name);
  }
  return error("tensor '{}' is {}, which is not decoded; expected one of {}", tensor.name,
               type != nullptr ? type->name : "of an unknown type", known);
}

}  // namespace

Status read_ggml_rows(const TensorInfo& tensor, int64_t first_row, int64_t n_rows, float* dst) {
  QUERN_ASSIGN(const GgmlType* type, decoded_type(tensor));
  const int64_t cols = matrix_cols(tensor), row_bytes = cols / type->block * type->bytes;
  if (n_rows > 0) type->dequantize(tensor.bytes + first_row * row_bytes, n_rows * cols, dst);
  return {};
}

Status read_ggml_cols(const TensorInfo& tensor, int64_t first_col, int64_t n_cols, float* dst) {
  QUERN_ASSIGN(const GgmlType* type, decoded_type(tensor));
  if (n_cols == 0) return {};
  const int64_t rows = matrix_rows(tensor), cols = matrix_cols(tensor);
  const int64_t first_block = first_col / type->block;
  const int64_t n_blocks = (first_col + n_cols - 1) / type->block + 1 - first_block;
  std::vector<float> buffer(static_cast<size_t>(n_blocks * type->block));
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t block = i * (cols / type->block) + first_block;
    type->dequantize(tensor.bytes + block * type->bytes, n_blocks * type->block, buffer.data());
    const float* src = buffer.data() + (first_col - first_block * type->block);
    for (int64_t j = 0; j < n_cols; ++j) dst[j * rows + i] = src[j];
  }
  return {};
}

}  // namespace quern
