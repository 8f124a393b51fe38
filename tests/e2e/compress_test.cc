// SPDX-License-Identifier: Apache-2.0
// Whole compressions of every fixture and of the bundled model: what comes out opens, runs, weighs
// what it says, keeps what no stage selected, and depends on recipe and seed alone.
#include "recipe/compress.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/parallel.h"
#include "base/random.h"
#include "calib/streams.h"
#include "eval/evaluate.h"
#include "fixtures.h"
#include "formats/safetensors.h"
#include "model/fuse.h"
#include "recipe/recipe.h"
#include "scratch.h"

namespace quern {
namespace {

using test::fixture;
using test::fixtures;
using test::ScratchFolder;
using test::small;

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";

std::vector<Token> random_ids(int64_t n_vocab, int n) {
  Random random(5);
  std::vector<Token> ids;
  for (int i = 0; i < n; ++i) {
    ids.push_back(static_cast<Token>(random.below(static_cast<uint64_t>(n_vocab))));
  }
  return ids;
}

EvalResult divergence(const Model& model, const Model& base) {
  EvalOptions options;
  options.protocol = Protocol::kStrided;
  options.n_ctx = 32;
  const auto result = evaluate(model, &base, random_ids(base.desc().n_vocab, 128), options);
  EXPECT_TRUE(result.has_value()) << (result ? "" : result.error().message);
  return result ? *result : EvalResult();
}

// Whether W may differ from the source: its rows or columns turned, or its norm's gain taken up.
bool is_turned(const BasisChange& basis, const WeightId& id) {
  return !basis.empty() && is_changed(basis, id);
}

void expect_untouched_weights(const ModelFiles& source, const ModelFiles& output) {
  const WeightStore &from = source.store(), &to = output.store();
  ASSERT_EQ(from.weight_ids(), to.weight_ids());
  ASSERT_EQ(source.n_params(), output.n_params());
  for (const WeightId& id : from.weight_ids()) {
    for (const Part part : {Part::kWeight, Part::kBias}) {
      if (!from.exists(id, part)) continue;
      if (is_turned(output.basis(), id)) continue;
      if (part == Part::kWeight && to.coded(id) != nullptr) continue;
      const auto a = from.load(id, part), b = to.load(id, part);
      ASSERT_TRUE(a && b) << to_string(id);
      EXPECT_TRUE(*a == *b) << to_string(id);
      const TensorInfo &old_tensor = from.stored(id, part), &new_tensor = to.stored(id, part);
      EXPECT_EQ(old_tensor.dtype, new_tensor.dtype) << to_string(id);
    }
  }
}

// Header and tensors fill the file; the bits per weight are those of the file.
void expect_every_byte_counted(const ModelFiles& files) {
  const std::string path = files.path() + "/model.safetensors";
  const std::string content = test::content_of(path);
  uint64_t header = 0;
  std::memcpy(&header, content.data(), sizeof(header));
  uint64_t tensors = 0;
  for (const TensorInfo& tensor : files.store().checkpoint().tensors()) tensors += tensor.n_bytes;
  EXPECT_EQ(8 + header + tensors, content.size());
  EXPECT_EQ(files.weight_bytes(), content.size());
  EXPECT_DOUBLE_EQ(files.bpw(), 8.0 * static_cast<double>(content.size()) /
                                    static_cast<double>(files.n_params()));
}

void expect_coded_as_selected(const std::string& text, const ModelFiles& output) {
  const auto recipe = Recipe::parse(text);
  ASSERT_TRUE(recipe.has_value());
  size_t n_coded = 0;
  for (const WeightId& id : output.store().weight_ids()) {
    if (!is_linear(id.role) && id.role != Role::kEmbed) continue;
    const Solver* solver = recipe->solver_for(output.desc(), id);
    const PackedTensor* coded = output.store().coded(id);
    ASSERT_EQ(coded != nullptr, solver != nullptr) << to_string(id);
    if (solver == nullptr) continue;
    const auto act = recipe->act_for(output.desc(), id);
    ASSERT_EQ(coded->act != nullptr, act != nullptr) << to_string(id);
    if (act != nullptr) {
      EXPECT_EQ(coded->act->spec(), act->spec());
    }
    ++n_coded;
    EXPECT_EQ(coded->codec->spec(), solver->codec().spec());
    EXPECT_TRUE(std::isfinite(coded->error));
    EXPECT_GE(coded->error, 0);
  }
  EXPECT_EQ(output.packed().tensors.size(), n_coded);
  EXPECT_EQ(output.packed().recipe, recipe->canonical());
}

class CompressFixtures : public ::testing::TestWithParam<const char*> {};

TEST_P(CompressFixtures, OpenRunAndWeighWhatTheySay) {
  const ScratchFolder scratch;
  const std::string recipe = GetParam();
  for (const std::string& name : fixtures()) {
    SCOPED_TRACE(name + "  " + recipe);
    const std::string out = scratch / name;
    const auto result = compress(small(fixture(name), out, recipe));
    ASSERT_TRUE(result.has_value()) << result.error().message;
    EXPECT_FALSE(std::filesystem::exists(out + ".partial"));
    const auto source = Model::open(fixture(name)), output = Model::open(out);
    ASSERT_TRUE(output.has_value()) << output.error().message;
    const ModelFiles& files = (*output)->files();
    expect_every_byte_counted(files);
    expect_coded_as_selected(recipe, files);
    expect_untouched_weights((*source)->files(), files);
    EXPECT_EQ(result->weight_bytes, files.weight_bytes());
    EXPECT_DOUBLE_EQ(result->bpw, files.bpw());
    EXPECT_DOUBLE_EQ(result->linear_bpw, files.linear_bpw());
    EXPECT_EQ(result->n_params, files.n_params());
    const EvalResult eval = divergence(**output, **source);
    EXPECT_TRUE(std::isfinite(eval.ppl) && std::isfinite(eval.kl_mean));
    // 8 bits: an error of 1 / 254 of a group's largest weight.
    const bool is_precise = recipe.find("int(8") != recipe.npos;
    const bool has_experts = (*source)->desc().layers.back().mlp.n_experts > 0;
    if (is_precise && !has_experts) {
      EXPECT_LT(eval.kl_mean, 0.01);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, CompressFixtures,
    ::testing::Values(
        "rtn(int(8, group=16))", "rtn(int(8)) @ all+embed", "rtn(int(4, group=8, sym=false))",
        "ldlq(int(4, group=16))", "ldlq(int(8)) @ all+embed+lm_head",
        "rotate(rht) | ldlq(int(8, group=16))", "rotate(rht) | rtn(int(8)) @ embed",
        "rotate(hadamard, sites=value+heads+ffn) | rtn(int(8)) @ v+o-layers[0:1]",
        "rotate(rht, sites=value+ffn+qk) | ldlq(int(3, group=8), order=act) @ attn+lm_head | "
        "rtn(int(4)) @ ffn+embed",
        "rtn(int(8)) @ q", "rtn(int(8)) @ gate+lm_head",
        "rtn(int(3)) @ q[1:2]+ffn[0:1]-up[0:1] | rtn(int(5)) @ all[1:2]",
        "rotate(rht) | ldlq(trellis(2.5, survivors=8, rows=64), drift=0.75)",
        "act(int(8)) @ all | rtn(int(8)) @ all+embed",
        "rtn(cvxq(3, group=16), weigh=gradients) @ all+embed+lm_head",
        "bias_correction | rotate(rht) | rtn(int(8, group=16)) @ all-up",
        "rotate(rht) | act(int(7, per=tensor, scale=static)) @ down+o | act(int(4, clip=0.9)) @ q "
        "| "
        "ldlq(int(6, group=16))"));

// int(8): |W - W_hat| is at most half a step, step = max|w| / 127 of its group; so is the loss.
TEST(Compress, EightBitsKeepEveryWeightWithinHalfAStep) {
  const ScratchFolder scratch;
  for (const char* name : {"llama", "phi3", "gpt2", "mixtral"}) {
    const std::string out = scratch / name;
    ASSERT_TRUE(compress(small(fixture(name), out, "rtn(int(8, group=16)) @ all+embed")));
    const auto source = ModelFiles::open(fixture(name)), output = ModelFiles::open(out);
    for (const WeightId& id : (*output)->store().weight_ids()) {
      if ((*output)->store().coded(id) == nullptr) continue;
      const auto w = (*source)->store().load(id);
      const auto coded = (*output)->linear(id);
      ASSERT_TRUE(w && coded);
      Matrix<float> w_hat(w->rows(), w->cols());
      decode_rows(*coded, 0, w->rows(), w_hat.data());
      for (int64_t i = 0; i < w->rows(); ++i) {
        for (int64_t g = 0; g < w->cols(); g += 16) {
          const int64_t end = std::min(g + 16, w->cols());
          float largest = 0;
          for (int64_t j = g; j < end; ++j) largest = std::max(largest, std::abs((*w)(i, j)));
          // The scale is rounded to half precision: up to 2^-11 of itself, times 127 steps.
          const float bound = largest / 127 * (0.5f + 127.0f / 2048) + 1e-7f;
          for (int64_t j = g; j < end; ++j) {
            ASSERT_LE(std::abs((*w)(i, j) - w_hat(i, j)), bound) << name << " " << to_string(id);
          }
        }
      }
    }
  }
}

std::string first_output(const ScratchFolder& scratch, CompressOptions options, const char* name) {
  options.out = scratch / name;
  const auto result = compress(options);
  EXPECT_TRUE(result.has_value()) << (result ? "" : result.error().message);
  return options.out;
}

TEST(Compress, BytesDependOnTheSeedAndNotOnThreads) {
  const ScratchFolder scratch;
  for (const std::string& model : {fixture("llama"), fixture("qwen3_moe"), kTiny}) {
    for (const char* recipe :
         {"rotate(rht) | ldlq(int(4, group=16))", "ldlq(int(3), order=act) @ all+embed",
          "rotate(rht) | ldlq(trellis(2, survivors=8), drift=0.75)"}) {
      SCOPED_TRACE(model + " " + recipe);
      CompressOptions options = small(model, "", recipe);
      options.corpus.n_samples = 2;
      options.force = true;
      set_thread_count(1);
      const auto one = test::files_of(first_output(scratch, options, "one"));
      set_thread_count(2);
      const auto two = test::files_of(first_output(scratch, options, "two"));
      EXPECT_TRUE(one.contains("config.json") && one.contains("model.safetensors"));
      EXPECT_TRUE(one == two);
      options.seed = 1;
      const auto other = test::files_of(first_output(scratch, options, "other"));
      EXPECT_NE(one.at("model.safetensors"), other.at("model.safetensors"));
      EXPECT_NE(one.at("config.json"), other.at("config.json"));
    }
  }
  set_thread_count(0);
}

TEST(Compress, TheTinyModelLosesLittleAt8BitsAndMoreAtFewer) {
  const ScratchFolder scratch;
  const auto base = Model::open(kTiny);
  ASSERT_TRUE(base.has_value());
  const auto tokenizer = Tokenizer::open(kTiny);
  const std::string prompt =
      "The history of the city begins with the Roman conquest, when a small settlement grew on the "
      "bank of the river. In the second century a wall was built around it, of which little "
      "remains "
      "above the ground. The bishops, who were given the land by the king, held a market there.";
  const std::vector<Token> ids = (*tokenizer)->tokenize(prompt);
  EvalOptions eval;
  eval.n_ctx = 48;
  double last = 0;
  for (const char* recipe : {"rtn(int(8, group=64))", "rotate(rht) | ldlq(int(4, group=64))",
                             "rotate(rht) | ldlq(int(2, group=64))"}) {
    const std::string out = first_output(scratch, small(kTiny, "", recipe), "out");
    const auto model = Model::open(out);
    ASSERT_TRUE(model.has_value()) << model.error().message;
    const auto result = evaluate(**model, base->get(), ids, eval);
    ASSERT_TRUE(result.has_value()) << result.error().message;
    EXPECT_GT(result->kl_mean, last) << recipe;
    if (last == 0) {
      EXPECT_LT(result->kl_mean, 0.01);
    }
    last = result->kl_mean;
    // The tokenizer comes along: the output is a model by itself.
    const auto copied = Tokenizer::open(out);
    ASSERT_TRUE(copied.has_value());
    EXPECT_EQ((*copied)->tokenize(prompt), ids);
    std::filesystem::remove_all(out);
  }
}

TEST(Compress, ExpertsThatSawNoTokenAreRoundedAndNamed) {
  const ScratchFolder scratch;
  CompressOptions options = small(fixture("mixtral"), scratch / "out", "ldlq(int(4))");
  options.corpus.n_samples = 1;
  options.corpus.length = 2;
  const auto result = compress(options);
  ASSERT_TRUE(result.has_value()) << result.error().message;
  ASSERT_FALSE(result->notes.empty());
  EXPECT_NE(result->notes[0].find("experts"), std::string::npos);
  EXPECT_NE(result->notes[0].find("rounded"), std::string::npos);
}

// Fewer experts at a time: more passes, the same statistics.
TEST(Compress, TheHessianBudgetDoesNotChangeTheBytes) {
  const ScratchFolder scratch;
  CompressOptions options = small(fixture("mixtral"), "", "rotate(rht) | ldlq(int(4))");
  const auto all = test::files_of(first_output(scratch, options, "all"));
  options.hessian_budget = 1;
  EXPECT_TRUE(all == test::files_of(first_output(scratch, options, "few")));
}

// The file says how inputs are rounded, whatever the reader would choose; without `act` it does
// not.
TEST(Compress, RoundingOfInputsIsThatOfTheFile) {
  const ScratchFolder scratch;
  const auto base = Model::open(fixture("llama"));
  for (const char* recipe :
       {"act(int(4, clip=0.9)) | rtn(int(8, group=16))", "act(fp8(e5m2)) | rtn(int(8, group=16))",
        "act(int(5, per=tensor, scale=static)) | rtn(int(8, group=16))", "rtn(int(8, group=16))"}) {
    const std::string out = first_output(scratch, small(fixture("llama"), "", recipe), "out");
    const auto exact = Model::open(out), int8 = Model::open(out, Activations::kInt8);
    ASSERT_TRUE(exact && int8);
    const double a = divergence(**exact, **base).kl_mean, b = divergence(**int8, **base).kl_mean;
    EXPECT_EQ(a == b, recipe[0] == 'a') << recipe << " " << a << " " << b;
    std::filesystem::remove_all(out);
  }
}

// What a matrix of the first layer makes of the mean of what it reads in `reader`.
Matrix<float> mean_output(const Model& model, const Corpus& corpus, const Model& reader,
                          Role role) {
  const ModelFiles& files = reader.files();
  const SampleRuns runs(files.desc(), corpus);
  GramTap tap(role, -1, -1);
  tap.take_means();
  const LayerWeights of_reader = *files.layer(0);
  runs.observe(0, of_reader, runs.embed(*files.ends()), tap, [] { return true; });
  const LayerWeights layer = *model.files().layer(0);
  const LinearWeight& weight = layer.at(role, -1);
  Matrix<float> x(1, weight.n_in), y(1, weight.n_out);
  const std::vector<double> mean = tap.mean(-1);
  std::copy(mean.begin(), mean.end(), x.data());
  linear(weight, x.view(), y.view());
  return y;
}

TEST(Compress, CorrectedBiasesTakeTheMeanOutOfTheError) {
  const ScratchFolder scratch;
  const std::string recipe = "rtn(int(2, group=16))";
  CompressOptions options = small(fixture("llama"), "", "bias_correction | " + recipe);
  const auto corpus = gather_corpus(options);
  ASSERT_TRUE(corpus.has_value());
  const std::string corrected = first_output(scratch, options, "corrected");
  options.recipe = recipe;
  const std::string plain = first_output(scratch, options, "plain");
  const auto base = Model::open(fixture("llama")), with = Model::open(corrected),
             without = Model::open(plain);
  ASSERT_TRUE(base && with && without);
  const auto error = [&](const Model& model, const Model& reader, Role role) {
    const Matrix<float> a = mean_output(model, *corpus, reader, role);
    const Matrix<float> b = mean_output(**base, *corpus, reader, role);
    float largest = 0;
    for (int64_t j = 0; j < a.cols(); ++j) largest = std::max(largest, std::abs(a(0, j) - b(0, j)));
    return largest;
  };
  for (const Role role : {Role::kQ, Role::kO, Role::kDown}) {
    // Rounded to the model's type; q reads what it does in the original, the others do not.
    EXPECT_LT(error(**with, **with, role), 0.05 * error(**without, **without, role));
  }
}

struct Refusal {
  std::string recipe, expected;
};

TEST(Compress, RefusesBeforeAnyWork) {
  const ScratchFolder scratch;
  const std::string out = scratch / "out";
  const Refusal refusals[] = {
      {"", "recipe"},
      {"rtn", "codec"},
      {"rtn(int(9))", "2..8"},
      {"rtn(int(4)) @ nothing", "no selector 'nothing'"},
      {"rtn(int(4)) @ layers[0:9]", "past the model's 2 layers"},
      {"rtn(int(4)) @ down[1:3]", "down[1:3] reaches past the model's 2 layers"},
      {"rtn(int(4)) @ lm_head[0:1]", "takes no range"},
      {"rtn(int(4)) | rotate(rht)", "coordinates change first"},
      {"rotate(rht) @ q", "sites"},
      {"act(int(8))", "none is coded"},
      {"act(int(2)) | rtn(int(4))", "3..8"},
      {"act(e5m2) | rtn(int(4))", "no act quantizer 'e5m2'"},
      {"act(int(8)) @ embed | rtn(int(4))", "no inputs"},
      {"act(int(8)) @ q | rtn(int(4)) @ k", "none of the matrices"},
      {"rtn(int(4)) | act(int(8))", "act comes after a coding stage"},
      {"act(int(8)) | rotate(rht) | rtn(int(4))", "coordinates change first"},
      {"act(int(4, per=group, group=16)) | rtn(int(4))", "multiple of the second"},
      {"act(int(8)) @ layers[0:9] | rtn(int(4))", "past the model's 2 layers"},
      {"sparsify(2:4)", "no stage 'sparsify'"},
      {"rotate(rht) | rotate(rht) | rotate(rht) | rotate(rht) | rotate(rht) | rtn(int(4))",
       "at most 8"},
  };
  for (const Refusal& refusal : refusals) {
    const auto result = compress(small(fixture("llama"), out, refusal.recipe));
    ASSERT_FALSE(result.has_value()) << refusal.recipe;
    EXPECT_NE(result.error().message.find(refusal.expected), std::string::npos)
        << refusal.recipe << ": " << result.error().message;
  }
  const auto again =
      compress(small(first_output(scratch, small(fixture("llama"), "", "rtn(int(4))"), "coded"),
                     out, "rtn(int(4))"));
  ASSERT_FALSE(again.has_value());
  EXPECT_NE(again.error().message.find("already compressed"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(out));
  EXPECT_FALSE(std::filesystem::exists(out + ".partial"));
}

TEST(Compress, NeverReplacesTheModelItReads) {
  const ScratchFolder scratch;
  const std::string model = scratch / "all/model";
  std::filesystem::create_directories(scratch / "all");
  std::filesystem::copy(fixture("llama"), model);
  for (const std::string& out : {model, model + "/", scratch / "all", scratch / "all/../all"}) {
    CompressOptions options = small(model, out, "rtn(int(4))");
    options.force = true;
    const auto result = compress(options);
    ASSERT_FALSE(result.has_value()) << out;
    EXPECT_EQ(result.error().kind, ErrorKind::kUsage);
  }
  EXPECT_EQ(test::files_of(model), test::files_of(fixture("llama")));
}

TEST(Compress, ATrailingSlashNamesTheSameFolder) {
  const ScratchFolder scratch;
  const auto result = compress(small(fixture("llama"), scratch / "out///", "rtn(int(4))"));
  ASSERT_TRUE(result.has_value()) << result.error().message;
  EXPECT_TRUE(ModelFiles::open(scratch / "out").has_value());
}

// A damaged source: an arbitrary code for NaN would be silent.
TEST(Compress, WeightsThatAreNoNumbersAreRefused) {
  const ScratchFolder scratch;
  const std::string model = scratch / "model";
  std::filesystem::copy(fixture("llama"), model);
  const auto file = SafetensorsFile::open(fixture("llama") + "/model.safetensors");
  const TensorInfo* tensor = (*file)->find("model.layers.1.self_attn.k_proj.weight");
  ASSERT_NE(tensor, nullptr);
  std::string content = test::content_of(model + "/model.safetensors");
  const auto at = static_cast<size_t>(tensor->bytes - (*file)->file().bytes().data());
  std::memset(content.data() + at, 0xff, 2);
  ASSERT_TRUE(write_file_atomically(model + "/model.safetensors", content));
  for (const char* recipe : {"rtn(int(4))", "rotate(rht) | rtn(int(4))"}) {
    const auto result = compress(small(model, scratch / "out", recipe));
    ASSERT_FALSE(result.has_value()) << recipe;
    EXPECT_NE(result.error().message.find("layers.1.k"), std::string::npos)
        << result.error().message;
    EXPECT_FALSE(std::filesystem::exists(scratch / "out"));
  }
}

TEST(Evaluate, IdsOfAnotherVocabularyAreRefused) {
  const auto model = Model::open(fixture("llama"));
  std::vector<Token> ids = random_ids((*model)->desc().n_vocab, 31);
  EvalOptions options;
  options.protocol = Protocol::kStrided;
  options.n_ctx = 16;
  ASSERT_TRUE(evaluate(**model, nullptr, ids, options).has_value());
  // The last of a window is a target only, never an input.
  ids[15] = 1 << 24;
  const auto result = evaluate(**model, nullptr, ids, options);
  ASSERT_FALSE(result.has_value());
  EXPECT_NE(result.error().message.find("vocabulary"), std::string::npos);
}

TEST(Calibration, ATextOfAnotherVocabularyIsRefused) {
  const auto tokenizer = Tokenizer::open(kTiny);          // 4096 tokens
  const auto model = ModelFiles::open(fixture("llama"));  // 128
  CorpusOptions options;
  options.length = 8;
  const auto corpus =
      corpus_from_text((*model)->desc(), **tokenizer,
                       "The history of the city begins with the Roman conquest", "text", options);
  ASSERT_FALSE(corpus.has_value());
  EXPECT_NE(corpus.error().message.find("vocabulary"), std::string::npos);
}

}  // namespace
}  // namespace quern
