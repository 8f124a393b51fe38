// SPDX-License-Identifier: Apache-2.0
// A 7B-shaped checkpoint with random weights goes through the program; its peak resident size is
// what the operating system says it was. Slow, and needs 14 GB of disk for the full shape.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/file.h"
#include "base/float_types.h"
#include "base/random.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace quern {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kModel = 4096, kFfn = 11008, kVocab = 32000;

// LLaMA-7B with a given number of layers, bf16, Gaussian weights of a realistic size.
void write_model(const std::string& folder, int n_layers) {
  fs::create_directories(folder);
  const Json config = {{"architectures", {"LlamaForCausalLM"}},
                       {"model_type", "llama"},
                       {"hidden_size", kModel},
                       {"intermediate_size", kFfn},
                       {"num_hidden_layers", n_layers},
                       {"num_attention_heads", 32},
                       {"num_key_value_heads", 32},
                       {"vocab_size", kVocab},
                       {"max_position_embeddings", 4096},
                       {"rms_norm_eps", 1e-5},
                       {"rope_theta", 10000.0},
                       {"hidden_act", "silu"},
                       {"bos_token_id", 0},
                       {"eos_token_id", 1},
                       {"tie_word_embeddings", false},
                       {"torch_dtype", "bfloat16"}};
  ASSERT_TRUE(write_file_atomically(folder + "/config.json", config.dump(1)));
  const std::string tiny = std::string(QUERN_SOURCE_DIR) + "/models/tiny/";
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    fs::copy_file(tiny + name, folder + "/" + name, fs::copy_options::overwrite_existing);
  }
  std::vector<TensorSpec> specs = {{"model.embed_tokens.weight", DType::kBF16, {kVocab, kModel}},
                                   {"lm_head.weight", DType::kBF16, {kVocab, kModel}},
                                   {"model.norm.weight", DType::kBF16, {kModel}}};
  for (int i = 0; i < n_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    for (const char* name :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}) {
      specs.push_back({layer + name + ".weight", DType::kBF16, {kModel, kModel}});
    }
    specs.push_back({layer + "mlp.gate_proj.weight", DType::kBF16, {kFfn, kModel}});
    specs.push_back({layer + "mlp.up_proj.weight", DType::kBF16, {kFfn, kModel}});
    specs.push_back({layer + "mlp.down_proj.weight", DType::kBF16, {kModel, kFfn}});
    specs.push_back({layer + "input_layernorm.weight", DType::kBF16, {kModel}});
    specs.push_back({layer + "post_attention_layernorm.weight", DType::kBF16, {kModel}});
  }
  // One block of random numbers, written again and again from changing starts.
  Random random(1);
  std::vector<uint16_t> block(8 << 20);
  for (uint16_t& value : block)
    value = float_to_bf16(0.02f * static_cast<float>(random.gaussian()));
  auto writer = SafetensorsWriter::create(folder + "/model.safetensors", specs, {{"format", "pt"}});
  ASSERT_TRUE(writer);
  for (const TensorSpec& spec : writer->order()) {
    auto left = static_cast<size_t>(*element_count(spec.shape));
    while (left > 0) {
      const size_t start = random.below(block.size() / 2);
      const size_t n = std::min(left, block.size() - start);
      ASSERT_TRUE(writer->append(spec.name, block.data() + start, 2 * n));
      left -= n;
    }
  }
  ASSERT_TRUE(writer->finish());
}

// Peak resident bytes of a run of the program; the exit code goes to `code`.
int64_t peak_of(const std::vector<std::string>& args, int& code) {
  const std::string program = std::string(QUERN_BINARY_DIR) + "/quern";
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::execv(program.c_str(), argv.data());
    ::_exit(127);
  }
  int status = 0;
  rusage usage{};
  ::wait4(child, &status, 0, &usage);
  code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

void expect_peak_below(const char* name, int n_layers, const std::vector<std::string>& options,
                       double gigabytes) {
  const char* scratch = std::getenv("QUERN_SCRATCH");
  const std::string root = scratch != nullptr ? scratch : ::testing::TempDir();
  const std::string model = fmt::format("{}/quern_memory_{}", root, name), out = model + "_out";
  for (const std::string& path : {model, out, out + ".partial"}) fs::remove_all(path);
  if (fs::space(root).available < (uint64_t{22} << 30)) GTEST_SKIP() << "needs 22 GB in " << root;
  write_model(model, n_layers);
  std::vector<std::string> args = {"compress", model, "-o", out};
  args.insert(args.end(), options.begin(), options.end());
  int code = -1;
  const int64_t peak = peak_of(args, code);
  EXPECT_EQ(code, 0);
  EXPECT_LT(static_cast<double>(peak), gigabytes * 1e9);
  fmt::print("{}: {} layers, peak {:.2f} GB resident\n", name, n_layers,
             static_cast<double>(peak) / 1e9);
  for (const std::string& path : {model, out}) fs::remove_all(path);
}

TEST(SlowMemory, SevenBillionByRtnStaysUnderSixGigabytes) {
  expect_peak_below("rtn", 32, {"-r", "rtn(int(4, group=64))"}, 6);
}

// The peak is that of one layer, so two show it.
TEST(SlowMemory, SevenBillionShapeByRotationAndLdlqStaysUnderTenGigabytes) {
  const std::string text = std::string(QUERN_SOURCE_DIR) + "/models/evaluation.txt";
  expect_peak_below("ldlq", 2,
                    {"-r", "rotate(rht) | ldlq(int(4, group=64))", "--calibration", text,
                     "--nsamples", "64", "--seqlen", "512"},
                    10);
}

}  // namespace
}  // namespace quern
