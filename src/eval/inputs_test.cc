// SPDX-License-Identifier: Apache-2.0
#include "eval/inputs.h"

#include <gtest/gtest.h>

#include <cmath>

namespace quern {
namespace {

std::unique_ptr<Model> fixture(std::string_view name) {
  auto model = Model::open(fmt::format("{}/tests/data/fixtures/{}", QUERN_SOURCE_DIR, name));
  EXPECT_TRUE(model.has_value()) << (model ? "" : model.error().message);
  return *std::move(model);
}

const std::vector<std::vector<Token>> kWindows = {{1, 5, 9, 20, 3, 7, 40, 2}, {1, 8, 8, 30}};

InputOptions options_of(std::initializer_list<const char*> acts) {
  InputOptions options;
  for (const char* text : acts) options.acts.push_back(*make_act(text));
  return options;
}

// What the taps show, gathered anew.
class Keep final : public LayerTap {
 public:
  explicit Keep(Role role) : role_(role) {}
  bool input(Role role, int, MatrixView<const float> x) override {
    for (int64_t i = 0; role == role_ && i < x.rows; ++i) {
      rows.emplace_back(x.row(i), x.row(i) + x.cols);
    }
    return true;
  }
  std::vector<std::vector<float>> rows;

 private:
  Role role_;
};

TEST(Inputs, AreThoseThatTheMatricesRead) {
  for (const char* name : {"llama", "mixtral", "gpt2"}) {
    const auto model = fixture(name);
    const auto measured = measure_inputs(*model, kWindows, options_of({"int(8)", "int(3)"}));
    ASSERT_TRUE(measured.has_value()) << measured.error().message;
    for (const InputStatistics& s : *measured) {
      Keep keep(s.role);
      for (const auto& window : kWindows) {
        KvCache cache = *model->make_cache(static_cast<int64_t>(window.size()));
        Matrix<float> hidden(static_cast<int64_t>(window.size()), model->desc().d_model);
        ASSERT_TRUE(model->forward(cache, window, hidden.view(), [&](int layer) -> LayerTap* {
          return layer == s.layer ? &keep : nullptr;
        }));
      }
      double squares = 0, largest = 0, zeros = 0, error = 0, peaks = 0;
      for (const auto& row : keep.rows) {
        std::vector<float> rounded(row.size());
        (*make_act("int(3)"))->values(row.data(), s.n_in, {}, rounded.data());
        double most = 0, sum = 0;
        for (size_t j = 0; j < row.size(); ++j) {
          sum += std::pow(double{row[j]}, 2);
          most = std::max(most, std::abs(double{row[j]}));
          zeros += rounded[j] == 0 ? 1 : 0;
          error += std::pow(double{row[j]} - rounded[j], 2);
        }
        squares += sum;
        largest = std::max(largest, most);
        peaks += most / std::sqrt(sum / static_cast<double>(row.size()));
      }
      const auto n = static_cast<double>(keep.rows.size()), width = static_cast<double>(s.n_in);
      EXPECT_EQ(s.n_rows, static_cast<int64_t>(keep.rows.size())) << name;
      EXPECT_EQ(s.max_abs, largest);
      EXPECT_NEAR(s.rms, std::sqrt(squares / (n * width)), 1e-9 * s.rms);
      EXPECT_NEAR(s.token_peak, peaks / n, 1e-9 * s.token_peak);
      EXPECT_DOUBLE_EQ(s.losses[1].zeros, zeros / (n * width));
      EXPECT_NEAR(s.losses[1].error, error / squares, 1e-9 * error / squares);
      EXPECT_GE(s.channel_peak, 1);
      // Fewer bits: more zeros, more error.
      EXPECT_GT(s.losses[1].zeros, s.losses[0].zeros);
      EXPECT_GT(s.losses[1].error, s.losses[0].error);
    }
    const bool has_experts = model->desc().layers[0].mlp.n_experts > 0;
    EXPECT_EQ(measured->size(), model->desc().layers.size() * 4);
    if (has_experts) {
      EXPECT_EQ((*measured)[2].n_rows, 12 * model->desc().layers[0].mlp.top_k);
    }
    EXPECT_EQ(input_name((*measured)[0].role), "attn_in");
    EXPECT_EQ(input_name((*measured)[3].role), "ffn");
  }
}

TEST(Inputs, AStaticScaleIsRefused) {
  const auto model = fixture("llama");
  const auto measured =
      measure_inputs(*model, kWindows, options_of({"int(8, per=tensor, scale=static)"}));
  ASSERT_FALSE(measured.has_value());
  EXPECT_EQ(measured.error().kind, ErrorKind::kUsage);
}

TEST(Inputs, MayBeCancelled) {
  const auto model = fixture("llama");
  InputOptions options;
  options.proceed = [](double done) { return done == 0; };
  const auto measured = measure_inputs(*model, kWindows, options);
  ASSERT_FALSE(measured.has_value());
  EXPECT_EQ(measured.error().kind, ErrorKind::kCancelled);
}

}  // namespace
}  // namespace quern
