// SPDX-License-Identifier: Apache-2.0
// What every codec of the registry must do, over every example it names and sizes that break
// vectors, groups and bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/random.h"
#include "codecs/codec.h"
#include "gaussian.h"

namespace quern {
namespace {

struct Coded {
  CodedMatrix codes;
  Matrix<float> w_hat;  // as encode reported it
};

Coded encode(const Codec& codec, const Matrix<float>& w) {
  Coded coded{*CodedMatrix::create(codec, w.rows(), w.cols()), Matrix<float>(w.rows(), w.cols())};
  const int64_t group = codec.group_cols(w.cols());
  codec.fit_matrix({w.view()}, coded.codes.mutable_view());
  for (int64_t row = 0; row < w.rows(); row += codec.block_rows()) {
    const int64_t n = std::min(codec.block_rows(), w.rows() - row);
    for (int64_t col = 0; col < w.cols(); col += group) {
      const int64_t width = std::min(group, w.cols() - col);
      const auto part = w.view().row_range(row, n).col_range(col, width);
      codec.fit(part, {}, row, col, coded.codes.mutable_view());
      codec.encode(part, row, col, coded.codes.mutable_view(),
                   coded.w_hat.view().row_range(row, n).col_range(col, width));
    }
  }
  return coded;
}

Matrix<float> decode(const Codec& codec, const CodedMatrix& codes) {
  Matrix<float> w(codes.n_out(), codes.n_in());
  codec.decode(codes.view(), 0, codes.n_out(), w.data());
  return w;
}

// Of rows [row, row + n) and columns [col, col + n_cols), as floats.
Matrix<float> decode_panels(const Decoder& codec, const CodesView& codes, int64_t row, int64_t n,
                            int64_t col, int64_t n_cols, float* largest_scale) {
  const int64_t group = codec.panel_tile(codes.n_in).group;
  const int64_t n_groups = (n_cols + group - 1) / group, n_panels = (n + 15) / 16;
  const int64_t stride = n_groups * group * 16 + 64;
  std::vector<uint8_t> levels(static_cast<size_t>(n_panels * stride), 77);
  std::vector<float> scales(static_cast<size_t>(n_panels * n_groups * 16));
  codec.decode_panels(codes, row, n, col, n_cols,
                      {levels.data(), scales.data(), stride, n_groups * 16});
  Matrix<float> w(n, n_cols);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n_cols; ++j) {
      const int64_t at = i / 16 * stride + (j / 4 * 16 + i % 16) * 4 + j % 4;
      const float scale =
          scales[static_cast<size_t>((i / 16 * n_groups + j / group) * 16 + i % 16)];
      w(i, j) = scale * static_cast<float>(levels[static_cast<size_t>(at)] - 128);
      *largest_scale = std::max(*largest_scale, std::abs(scale));
    }
  }
  for (int64_t p = 0; p < n_panels; ++p) {
    for (int64_t i = 0; i < 64; ++i) {
      EXPECT_EQ(levels[static_cast<size_t>((p + 1) * stride - 64 + i)], 77) << "wrote past a panel";
    }
  }
  return w;
}

double mse(const Matrix<float>& a, const Matrix<float>& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows() * a.cols(); ++i) {
    sum += std::pow(static_cast<double>(a.data()[i]) - b.data()[i], 2);
  }
  return sum / static_cast<double>(a.rows() * a.cols());
}

template <class Body>
void for_each_example(const Body& body) {
  for (const CodecInfo& info : codecs()) {
    EXPECT_FALSE(info.examples.empty()) << info.name;
    for (const std::string_view text : info.examples) {
      SCOPED_TRACE(text);
      const auto codec = make_codec(text);
      ASSERT_TRUE(codec) << codec.error().message;
      body(**codec);
    }
  }
}

constexpr int64_t kWidths[] = {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 128, 257};

TEST(Conformance, IdsAndNamesAreUnique) {
  for (const CodecInfo& a : codecs()) {
    for (const CodecInfo& b : codecs()) {
      if (&a == &b) continue;
      EXPECT_NE(a.id, b.id);
      EXPECT_NE(a.name, b.name);
    }
  }
}

TEST(Conformance, SpecParsesBackToTheSameCodec) {
  for_each_example([](const Codec& codec) {
    const auto again = make_codec(codec.spec());
    ASSERT_TRUE(again);
    EXPECT_EQ((*again)->spec(), codec.spec());
    EXPECT_EQ(*(*again)->planes(48, 96), *codec.planes(48, 96));
  });
}

TEST(Conformance, DecodeGivesWhatEncodeReported) {
  for_each_example([](const Codec& codec) {
    for (const int64_t width : kWidths) {
      if (!codec.planes(5, width)) continue;
      const Coded coded = encode(codec, gaussian(5, width, 1));
      EXPECT_EQ(decode(codec, coded.codes), coded.w_hat) << width;
    }
  });
}

TEST(Conformance, RowsDecodeAloneAsTogether) {
  for_each_example([](const Codec& codec) {
    const Matrix<float> w = gaussian(9, 257, 2);
    if (!codec.planes(w.rows(), w.cols())) return;
    const Coded coded = encode(codec, w);
    const Matrix<float> all = decode(codec, coded.codes);
    for (int64_t row = 0; row < w.rows(); ++row) {
      Matrix<float> one(1, w.cols());
      codec.decode(coded.codes.view(), row, 1, one.data());
      EXPECT_EQ(0, std::memcmp(one.data(), all.row(row), sizeof(float) * 257)) << row;
    }
  });
}

TEST(Conformance, RuntimeFormsDecodeToTheSameBits) {
  int n_forms = 0;
  for_each_example([&](const Codec& codec) {
    for (const int64_t width : kWidths) {
      const Matrix<float> w = gaussian(21, width, 7);
      if (!codec.planes(w.rows(), width)) continue;
      const Coded coded = encode(codec, w);
      const Matrix<float> expected = decode(codec, coded.codes);
      for (const Reading reading : {Reading::kValues, Reading::kPanels}) {
        const auto form = codec.runtime_form(coded.codes.view(), reading);
        if (form == nullptr) continue;
        ++n_forms;
        Matrix<float> got(w.rows(), width);
        for (int64_t row = 0, n = 1; row < w.rows();
             row += n, n = std::min(2 * n, w.rows() - row)) {
          form->decoder->decode(form->codes.view(), row, n, got.row(row));
        }
        EXPECT_EQ(0, std::memcmp(got.data(), expected.data(),
                                 sizeof(float) * static_cast<size_t>(w.rows() * width)))
            << width;
      }
    }
  });
  EXPECT_GT(n_forms, 0);
}

// Coding what was decoded again may refit the scale; it must lose no more than rounding, and
// little more where the fit pursues another aim than the error (an entropy).
TEST(Conformance, CodingAgainCostsNoMoreThanCodingOnce) {
  for_each_example([](const Codec& codec) {
    const Matrix<float> w = gaussian(8, 256, 3);
    const Matrix<float> once = decode(codec, encode(codec, w).codes);
    const Matrix<float> twice = decode(codec, encode(codec, once).codes);
    EXPECT_LE(mse(once, twice), 1.1 * mse(w, once));
  });
}

TEST(Conformance, AnyBytesDecodeWithoutHarm) {
  for_each_example([](const Codec& codec) {
    Random random(4);
    for (const int64_t width : kWidths) {
      if (!codec.planes(3, width)) continue;
      CodedMatrix codes = *CodedMatrix::create(codec, 3, width);
      for (size_t p = 0; p < codes.specs().size(); ++p) {
        for (size_t i = 0; i < codes.specs()[p].n_bytes(); ++i) {
          codes.mutable_view().planes[p][i] = static_cast<std::byte>(random.next());
        }
      }
      std::vector<float> guarded(static_cast<size_t>(3 * width + 2), 123.0f);
      codec.decode(codes.view(), 0, 3, guarded.data() + 1);
      float scale = 0;
      decode_panels(codec, codes.view(), 0, 3, 0, width, &scale);
      EXPECT_EQ(guarded.front(), 123.0f);
      EXPECT_EQ(guarded.back(), 123.0f);
    }
  });
}

TEST(Conformance, ExtremeWeightsAreCodedToFiniteNumbers) {
  for_each_example([](const Codec& codec) {
    Matrix<float> w = gaussian(6, 256, 5);
    for (int64_t j = 0; j < w.cols(); ++j) {
      w(0, j) = 0;
      w(1, j) *= 1e-20f;
      w(2, j) *= 1e10f;
      w(3, j) = 1;
    }
    w(4, 17) = 1e30f;
    const Matrix<float> decoded = decode(codec, encode(codec, w).codes);
    for (int64_t j = 0; j < w.cols(); ++j) {
      if (codec.block_rows() == 1) {
        EXPECT_EQ(decoded(0, j), 0) << "zeros stay zero";
      }
      for (int64_t i = 1; i < w.rows(); ++i) EXPECT_TRUE(std::isfinite(decoded(i, j)));
    }
  });
}

TEST(Conformance, ZerosStayZero) {
  for_each_example([](const Codec& codec) {
    const Matrix<float> zeros(6, 64);
    if (!codec.planes(zeros.rows(), zeros.cols())) return;
    EXPECT_EQ(decode(codec, encode(codec, zeros).codes), zeros);
  });
}

// Panels of a whole matrix and of its tiles.
void expect_panels_of_decoded(const Decoder& codec, const CodesView& codes) {
  const int64_t n_rows = codes.n_out, width = codes.n_in;
  float scale = 0;
  Matrix<float> w(n_rows, width);
  codec.decode(codes, 0, n_rows, w.data());
  const Matrix<float> rounded = decode_panels(codec, codes, 0, n_rows, 0, width, &scale);
  for (int64_t i = 0; i < n_rows; ++i) {
    for (int64_t j = 0; j < width; ++j) ASSERT_NEAR(w(i, j), rounded(i, j), 0.501f * scale);
  }
  const PanelTile tile = codec.panel_tile(width);
  ASSERT_EQ(tile.rows % kPanelRows, 0);
  ASSERT_EQ(tile.group % kPanelGroupUnit, 0);
  ASSERT_LE(tile.group, kMostPanelGroup);
  ASSERT_EQ(tile.cols % tile.group, 0);
  const int64_t cols = tile.cols == 0 ? width : tile.cols;
  for (int64_t row = 0; row < n_rows; row += tile.rows) {
    const int64_t n = std::min(tile.rows, n_rows - row);
    for (int64_t col = 0; col < width; col += cols) {
      const Matrix<float> part =
          decode_panels(codec, codes, row, n, col, std::min(cols, width - col), &scale);
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < part.cols(); ++j) {
          ASSERT_EQ(part(i, j), rounded(row + i, col + j));
        }
      }
    }
  }
}

TEST(Conformance, PanelsAreWhatDecodeGivesRounded) {
  for_each_example([](const Codec& codec) {
    for (const int64_t width : {1, 31, 100, 136, 256}) {
      const int64_t tile_rows = codec.panel_tile(width).rows;
      const int64_t n_rows = width == 256 && tile_rows > kPanelRows ? tile_rows + 5 : 21;
      if (!codec.planes(n_rows, width)) continue;
      const Coded coded = encode(codec, gaussian(n_rows, width, 8));
      expect_panels_of_decoded(codec, coded.codes.view());
      const auto form = codec.runtime_form(coded.codes.view(), Reading::kPanels);
      if (form != nullptr) expect_panels_of_decoded(*form->decoder, form->codes.view());
    }
  });
}

TEST(Conformance, ClaimedErrorHolds) {
  for_each_example([](const Codec& codec) {
    if (codec.claim().mse == 0) return;
    const Matrix<float> w = gaussian(256, 512, 6);
    EXPECT_LE(mse(w, decode(codec, encode(codec, w).codes)), 1.02 * codec.claim().mse);
  });
}

TEST(Conformance, ListedValuesAreCodedWithoutError) {
  for_each_example([](const Codec& codec) {
    if (!codec.lists_levels()) return;
    Coded coded = encode(codec, gaussian(2, 40, 8));
    const MutableCodes codes = coded.codes.mutable_view();
    std::vector<float> values;
    for (const int64_t col : {0, 39}) {
      codec.levels(codes, 1, col, values);
      EXPECT_GT(values.size(), 1u);
      EXPECT_NE(std::find(values.begin(), values.end(), coded.w_hat(1, col)), values.end());
      for (const float value : values) {
        if (!std::isfinite(value)) continue;
        float w_hat;
        codec.encode({&value, 1, 1, 1}, 1, col, codes, {&w_hat, 1, 1, 1});
        EXPECT_EQ(w_hat, value);
      }
    }
  });
}

}  // namespace
}  // namespace quern
