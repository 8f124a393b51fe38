// SPDX-License-Identifier: Apache-2.0
// The program as scripts see it: exit codes, what goes to which stream, and the keys of its JSON.
#include <gtest/gtest.h>

#include "base/file.h"
#include "expect.h"
#include "formats/json.h"
#include "program.h"
#include "scratch.h"

namespace quern {
namespace {

using test::expect_failure;
using test::keys_missing;
using test::Ran;
using test::run_quern;
using test::ScratchFolder;

const std::string kTiny = QUERN_SOURCE_DIR "/models/tiny";
const std::string kLlama = QUERN_SOURCE_DIR "/tests/data/fixtures/llama";
constexpr const char* kCommands[] = {"compress", "eval",  "compare", "inspect",
                                     "run",      "bench", "list",    "calibrate-kv"};

std::string words() {
  std::string text;
  for (int i = 0; i < 40; ++i) {
    text +=
        "The history of the city begins with the Roman conquest, when a small settlement grew. ";
  }
  return text;
}

TEST(Cli, HelpAndVersionGoToStandardOutput) {
  Ran ran = run_quern({"--help"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.err, "");
  for (const char* command : kCommands) {
    EXPECT_NE(ran.out.find(command), std::string::npos) << command;
    const Ran help = run_quern({command, "--help"});
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_EQ(help.err, "") << command;
    EXPECT_NE(help.out.find("--json"), std::string::npos) << command;
  }
  ran = run_quern({"--version"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.out, "quern " QUERN_VERSION "\n");
}

TEST(Cli, HelpIsQuick) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) best = std::min(best, run_quern({"run", "--help"}).seconds);
  EXPECT_LT(best, test::kIsSanitized ? 2.0 : 0.05);
}

TEST(Cli, WrongUsageIsTwo) {
  const ScratchFolder scratch;
  const std::string out = scratch / "out";
  expect_failure({}, 2, "subcommand");
  expect_failure({"fly"}, 2, "subcommand");
  expect_failure({"run"}, 2, "--model");
  expect_failure({"run", kTiny, "--fly"}, 2, "--fly");
  expect_failure({"run", kTiny, "-n", "many"}, 2, "many");
  expect_failure({"run", kTiny, "-t", "-1"}, 2, "-1");
  expect_failure({"eval", kTiny, "--protocol", "guess"}, 2, "bos_windows");
  expect_failure({"list", "planets"}, 2, "codecs");
  expect_failure({"compress", kTiny, "--recipe", "rtn(int(4))"}, 2, "--out");
  expect_failure({"compress", kTiny, "-o", out}, 2, "--recipe");
  expect_failure({"compress", kTiny, "-o", out, "--recipe", "rtn(int(1))"}, 2, "2..8");
  expect_failure({"compress", kTiny, "-o", out, "--recipe", "rtn(int(4"}, 2, "recipe");
  expect_failure({"compress", kTiny, "-o", kLlama, "--recipe", "rtn(int(4))"}, 2, "--force");
  expect_failure({"compress", kLlama, "-o", kLlama, "-f", "--recipe", "rtn(int(4))"}, 2, "holds");
  expect_failure({"compress", kTiny, "-o", std::string(5000, 'a'), "--recipe", "rtn(int(4))"}, 2,
                 "too long");
  expect_failure({"compare", kTiny, "--recipes", "rtn(int(4)); fly()"}, 2, "fly");
}

TEST(Cli, WorkThatFailsIsOne) {
  const ScratchFolder scratch;
  const std::string absent = scratch / "absent", text = scratch / "text";
  ASSERT_TRUE(write_file_atomically(text, "too short"));
  for (const char* command : {"inspect", "run", "bench"})
    expect_failure({command, absent}, 1, absent);
  expect_failure({"eval", absent, "--text", text}, 1, absent);
  expect_failure({"eval", kTiny, "--text", absent}, 1, absent);
  expect_failure({"eval", kTiny, "--text", text}, 1, "window");
  expect_failure({"eval", kTiny, "--text", text, "--base", absent}, 1, absent);
  expect_failure({"run", kTiny, "-f", absent}, 1, absent);
  expect_failure({"run", kTiny, "-p", words(), "-c", "5"}, 1, "context");
  expect_failure({"run", kLlama, "-p", "x"}, 1, "tokenizer");
  expect_failure({"compress", absent, "-o", scratch / "o", "--recipe", "rtn(int(4))"}, 1, absent);
  expect_failure(
      {"compress", kTiny, "-o", scratch / "o", "--recipe", "ldlq(int(4))", "--calibration", text},
      1, "window");
  expect_failure({"compress", kTiny, "-o", text + "/o", "--recipe", "rtn(int(4))"}, 1, text);
}

TEST(Cli, EvalPrintsItsKeys) {
  const ScratchFolder scratch;
  const std::string text = scratch / "text";
  ASSERT_TRUE(write_file_atomically(text, words()));
  const Ran ran = run_quern({"eval", kTiny, "--text", text, "--base", kTiny, "--ctx", "64",
                             "--windows", "4", "--json", "--activations", "exact"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json json = Json::parse(ran.out);
  EXPECT_EQ(keys_missing(json, {"ppl", "nll", "stderr", "tokens", "bytes", "bpw", "kl_mean",
                                "kl_p99", "top1", "seconds", "tokens_per_second"}),
            std::vector<std::string>());
  EXPECT_EQ(json["tokens"], 4 * 63);
  EXPECT_EQ(json["kl_mean"], 0);
  EXPECT_EQ(json["top1"], 1);
  EXPECT_EQ(json["bytes"], std::filesystem::file_size(kTiny + "/model.safetensors"));
  const Ran plain = run_quern({"eval", kTiny, "--text", text, "--ctx", "64", "--windows", "4"});
  EXPECT_EQ(plain.code, 0);
  EXPECT_NE(plain.out.find("perplexity"), std::string::npos);
  EXPECT_NE(plain.out.find("252 tokens"), std::string::npos) << plain.out;
}

TEST(Cli, EvalInBf16IsNearTheOriginal) {
  const ScratchFolder scratch;
  const std::string text = scratch / "text";
  ASSERT_TRUE(write_file_atomically(text, words()));
  const Ran ran = run_quern({"eval", kTiny, "--text", text, "--base", kTiny, "--ctx", "64",
                             "--windows", "4", "--json", "--activations", "bf16", "--kv", "f16"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json json = Json::parse(ran.out);
  EXPECT_GT(json["kl_mean"], 0);
  EXPECT_LT(json["kl_mean"], 0.001);
}

TEST(Cli, CompressRefusesWhatMissesItsBound) {
  const ScratchFolder scratch;
  const std::string out = scratch / "out";
  const auto compress = [&](const std::string& option, const std::string& bound) {
    return run_quern({"compress", kTiny, "-o", out, "--recipe", "rtn(int(4))", option, bound,
                      "--ctx", "64", "--windows", "4"});
  };
  Ran ran = compress("--max-kl", "1e-6");
  EXPECT_EQ(ran.code, 1) << ran.err;
  EXPECT_NE(ran.err.find("more than --max-kl 1e-06; it is kept as"), std::string::npos) << ran.err;
  EXPECT_FALSE(std::filesystem::exists(out));
  EXPECT_TRUE(std::filesystem::exists(out + ".refused/config.json"));
  ran = compress("--max-ppl-ratio", "0.5");
  EXPECT_EQ(ran.code, 1) << ran.err;
  EXPECT_NE(ran.err.find("--max-ppl-ratio"), std::string::npos) << ran.err;
  ran = compress("--max-kl", "10");
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("measured  KL 0."), std::string::npos) << ran.err;
  EXPECT_TRUE(std::filesystem::exists(out + "/config.json"));
}

TEST(Cli, CompressFitsASizeAndItsPlanCanBeReused) {
  const ScratchFolder scratch;
  const std::string out = scratch / "out", plan = scratch / "plan.json";
  const std::string mix = "mix(rtn(int(4, group=0)), rtn(int(6, group=0)), keep) @ all+embed";
  const auto compress = [&](std::vector<std::string> more) {
    std::vector<std::string> args = {"compress",  kLlama, "--nsamples", "2",
                                     "--seqlen",  "16",   "--curves",   scratch / "curves.json",
                                     "--windows", "2",    "--ctx",      "32"};
    args.insert(args.end(), more.begin(), more.end());
    return run_quern(args);
  };
  Ran ran = compress({"--recipe", mix, "--size", "0.016MB", "--dry-run", "--plan", plan});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("expected KL"), std::string::npos) << ran.err;
  EXPECT_FALSE(std::filesystem::exists(out));
  const Json planned = *read_json_file(plan);
  EXPECT_LE(planned["bytes"].get<int>(), 16000);
  ran = compress({"-o", out, "--plan", plan});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(std::filesystem::file_size(out + "/model.safetensors"), planned["bytes"]);

  ran = compress({"-o", out, "-f", "--recipe", mix, "--bits", "9", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  Json last;
  for (size_t at = 0; at < ran.out.size(); at = ran.out.find('\n', at) + 1) {
    last = Json::parse(ran.out.substr(at, ran.out.find('\n', at) - at));
  }
  EXPECT_EQ(last["event"], "check");
  EXPECT_EQ(keys_missing(last, {"planned_kl", "uniform_kl", "written"}),
            std::vector<std::string>{});

  expect_failure({"compress", kLlama, "-o", out, "-f"}, 2, "--size");
  expect_failure({"compress", kLlama, "-o", out, "-f", "--size", "1GB", "--bits", "3"}, 2, "one");
  expect_failure({"compress", kLlama, "-o", out, "-f", "--size", "much"}, 2, "unit");
  expect_failure({"compress", kLlama, "-o", out, "-f", "--size=-3KB"}, 2, "bytes");
  expect_failure({"compress", kLlama, "--bits", "3"}, 2, "--out");
  expect_failure({"compress", kLlama, "-o", out, "-f", "--bits", "3", "-r", "rtn(int(4))"}, 2,
                 "mix");
}

TEST(Cli, EvalAnswersTasks) {
  const ScratchFolder scratch;
  const std::string file = scratch / "places.jsonl", answers = scratch / "answers.jsonl";
  ASSERT_TRUE(write_file_atomically(
      file,
      "{\"context\": \"The city lies on the\", \"choices\": [\"river.\", \"qqq\"], \"gold\": 0}\n"
      "{\"context\": \"It was built in the\", \"choices\": [\"zzzz\", \"century\"], \"gold\": "
      "1}\n"));
  Ran ran = run_quern({"eval", kTiny, "--base", kTiny, "--tasks", file + "," + file, "--json",
                       "--answers", answers});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json tasks = Json::parse(ran.out)["tasks"];
  ASSERT_EQ(tasks.size(), 2u);
  EXPECT_EQ(keys_missing(tasks[0], {"task", "items", "acc", "acc_stderr", "acc_norm",
                                    "acc_norm_stderr", "seconds", "base", "acc_difference",
                                    "acc_difference_stderr", "won", "lost", "p_value"}),
            std::vector<std::string>{});
  EXPECT_EQ(tasks[0]["task"], "places");
  EXPECT_EQ(tasks[0]["items"], 2);
  EXPECT_EQ(tasks[0]["acc"], 1.0);
  const auto lines = read_file(answers);
  ASSERT_TRUE(lines);
  EXPECT_EQ(std::count(lines->begin(), lines->end(), '\n'), 4);
  ran = run_quern({"eval", kTiny, "--tasks", file, "--limit", "1"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("places"), std::string::npos) << ran.out;
  expect_failure({"eval", kTiny, "--tasks", scratch / "absent.jsonl"}, 1, "absent.jsonl");
}

TEST(Cli, EvalShowsSamples) {
  Ran ran = run_quern({"eval", kTiny, "--base", kTiny, "--samples", "2", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json json = Json::parse(ran.out);
  EXPECT_EQ(json["agreed_tokens"], 64);
  EXPECT_EQ(json["samples"].size(), 2u);
  EXPECT_EQ(json["samples"][1]["text"], json["samples"][1]["base_text"]);
  ran = run_quern({"eval", kTiny, "--base", kTiny, "--samples", "1"});
  EXPECT_NE(ran.out.find("agreed     64.0 of 64 tokens"), std::string::npos) << ran.out;
  expect_failure({"eval", kTiny, "--samples", "2"}, 2, "--base");
}

TEST(Cli, CompressPrintsEventsAndInspectEveryByte) {
  const ScratchFolder scratch;
  const std::string out = scratch / "out";
  Ran ran =
      run_quern({"compress", kTiny, "-o", out, "--recipe", "rtn(int(8)) @ all+embed", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  std::map<std::string, int> events;
  Json done;
  size_t at = 0;
  while (at < ran.out.size()) {
    const size_t end = ran.out.find('\n', at);
    ASSERT_NE(end, std::string::npos);
    const Json event = Json::parse(ran.out.substr(at, end - at));
    ++events[event["event"]];
    if (event["event"] == "done") done = event;
    at = end + 1;
  }
  EXPECT_EQ(events["plan"], 1);
  EXPECT_EQ(events["layer"], 6);
  EXPECT_EQ(events["done"], 1);
  EXPECT_GT(events["progress"], 6);
  const uint64_t size = std::filesystem::file_size(out + "/model.safetensors");
  EXPECT_EQ(done["bytes"], size);

  ran = run_quern({"inspect", out, "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json json = Json::parse(ran.out);
  uint64_t total = 0;
  for (const Json& row : json["tensors"]) total += row["bytes"].get<uint64_t>();
  const std::string content = test::content_of(out + "/model.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, content.data(), sizeof(header));
  EXPECT_EQ(total + header + 8, size);
  EXPECT_EQ(json["bytes"], size);
  EXPECT_DOUBLE_EQ(json["bpw"].get<double>(),
                   8.0 * static_cast<double>(size) / json["params"].get<double>());
  EXPECT_EQ(json["quantization"]["recipe"], "rtn(int(8)) @ all+embed");
  const Ran table = run_quern({"inspect", out});
  EXPECT_EQ(table.code, 0);
  EXPECT_NE(table.out.find("rtn(int(8)) @ all+embed"), std::string::npos);
  const Ran run =
      run_quern({"run", out, "-p", "The history of", "-n", "8", "--temp", "0", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(keys_missing(Json::parse(run.out), {"prompt", "text", "tokens", "stop"}),
            std::vector<std::string>());
}

TEST(Cli, InspectMeasuresWhatMatricesRead) {
  Ran ran = run_quern({"inspect", kTiny, "--inputs", "--ctx", "32", "--windows", "1", "--act",
                       "int(4); fp8", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json inputs = Json::parse(ran.out)["inputs"];
  ASSERT_EQ(inputs.size(), 6 * 4u);
  for (const Json& row : inputs) {
    EXPECT_EQ(row["rows"], 31) << "the last token of a window is only predicted";
    EXPECT_GT(row["max_abs"], row["rms"]);
    EXPECT_GT(row["losses"][0]["zeros"], row["losses"][1]["zeros"]) << "4 bits and 8";
  }
  ran = run_quern({"inspect", kTiny, "--inputs", "--ctx", "32", "--windows", "1"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("mlp_in"), std::string::npos) << ran.out;
  expect_failure({"inspect", kTiny, "--inputs", "--act", "int(9)"}, 2, "3..8");
}

TEST(Cli, ComparePrintsATableInThreeForms) {
  const ScratchFolder scratch;
  const std::string text = scratch / "text", work = scratch / "work";
  ASSERT_TRUE(write_file_atomically(text, words()));
  const std::vector<std::string> args = {
      "compare",   kTiny, "--recipes", "rtn(int(8)); rtn(int(3, group=64))",
      "--work",    work,  "--text",    text,
      "--ctx",     "64",  "--windows", "3",
      "--no-speed"};
  const auto with = [&](const char* flag) {
    std::vector<std::string> all = args;
    all.emplace_back(flag);
    return run_quern(all);
  };
  Ran ran = with("--json");
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json json = Json::parse(ran.out);
  ASSERT_EQ(json.size(), 3u);
  EXPECT_EQ(json[0]["recipe"], "original");
  for (const Json& row : json) {
    EXPECT_EQ(keys_missing(row, {"recipe", "bytes", "bpw", "ppl", "nll", "tokens", "pareto",
                                 "decode_weights_per_second"}),
              std::vector<std::string>());
  }
  for (size_t i = 1; i < 3; ++i) {
    EXPECT_EQ(keys_missing(json[i], {"kl_mean", "kl_p99", "top1"}), std::vector<std::string>());
    EXPECT_LT(json[i]["bytes"], json[i - 1]["bytes"]);  // by size
  }
  ran = with("--csv");
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 4);
  EXPECT_EQ(ran.out.rfind("recipe,bytes,bpw", 0), 0u) << ran.out;
  EXPECT_NE(ran.out.find("\"rtn(int(3, group=64))\""), std::string::npos) << ran.out;
  EXPECT_NE(ran.out.find(",decode_weights_per_second,"), std::string::npos) << ran.out;
  ran = run_quern({args.begin(), args.end() - 1});  // with speeds
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("original"), std::string::npos);
  EXPECT_NE(ran.out.find("decode/s"), std::string::npos) << ran.out;
  EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), 'G'), 2) << "two are coded: " << ran.out;
}

TEST(Cli, CompareTakesOneCacheForAll) {
  const ScratchFolder scratch;
  const std::string text = scratch / "text";
  ASSERT_TRUE(write_file_atomically(text, words()));
  std::vector<Json> tables;
  for (const char* kv : {"f16", "kv(k=int(1), v=int(1))"}) {
    const Ran ran = run_quern({"compare", kTiny, "--recipes", "rtn(int(8))", "--work",
                               scratch / "work", "--text", text, "--ctx", "128", "--windows", "2",
                               "--no-speed", "--json", "--kv", kv});
    ASSERT_EQ(ran.code, 0) << ran.err;
    tables.push_back(Json::parse(ran.out));
    EXPECT_EQ(tables.back()[0].contains("kl_mean"), tables.size() == 2);  // of the original
    EXPECT_NE(tables.back()[0]["kv"].get<std::string>().find(tables.size() == 2 ? "int(1" : "f16"),
              std::string::npos);
  }
  EXPECT_GT(tables[1][0]["kl_mean"], 0);
  EXPECT_GT(tables[1][1]["kl_mean"], tables[0][1]["kl_mean"]);
  expect_failure({"compare", kTiny, "--recipes", "rtn(int(4))", "--kv", "q5"}, 2, "q5");
}

TEST(Cli, ListPrintsJson) {
  const Ran list = run_quern({"list", "--json"});
  ASSERT_EQ(list.code, 0);
  const Json json = Json::parse(list.out);
  for (const char* kind : {"codecs", "transforms", "activations", "solvers", "architectures"}) {
    ASSERT_TRUE(json.contains(kind)) << kind;
    ASSERT_FALSE(json[kind].empty()) << kind;
    for (const Json& row : json[kind]) {
      EXPECT_EQ(keys_missing(row, {"name", "summary", "params"}), std::vector<std::string>());
    }
    const Ran one = run_quern({"list", kind, "--json"});
    ASSERT_EQ(one.code, 0);
    EXPECT_EQ(Json::parse(one.out), json[kind]);
  }
}

// Integers of rounded inputs are the same at every ISA, and so is what becomes of them.
TEST(Cli, RoundedInputsGiveTheSameNumbersAtEveryIsa) {
  const test::ScratchFolder scratch;
  for (const char* recipe :
       {"act(int(8)) | rtn(int(8, group=0))", "act(int(4, clip=0.9, sym=false)) | rtn(int(4))",
        "act(int(6, per=group)) @ down | act(fp8) | rtn(int(4))"}) {
    const std::string out = scratch / "out";
    ASSERT_EQ(run_quern({"compress", kTiny, "-o", out, "--recipe", recipe, "--force"}).code, 0);
    std::vector<Json> results;
    for (const char* isa : {"ref", "avx2", "avx512", "amx"}) {
      const Ran ran = run_quern({"eval", out, "--base", kTiny, "--ctx", "48", "--windows", "1",
                                 "--text", QUERN_SOURCE_DIR "/models/evaluation.txt", "--json"},
                                {.env = {{"QUERN_ISA", isa}}});
      ASSERT_EQ(ran.code, 0) << ran.err;
      results.push_back(Json::parse(ran.out));
      EXPECT_EQ(results.back()["nll"], results[0]["nll"]) << recipe << " " << isa;
      EXPECT_EQ(results.back()["kl_mean"], results[0]["kl_mean"]) << recipe << " " << isa;
    }
    EXPECT_GT(results[0]["kl_mean"], 0);
  }
}

// The same text from any number of threads and at every ISA of the host that is asked for.
TEST(Cli, GreedyTextDoesNotDependOnThreads) {
  std::string first;
  for (const char* threads : {"1", "2", "3"}) {
    const Ran ran =
        run_quern({"run", kTiny, "-p", "The history of", "-n", "12", "--temp", "0", "-t", threads});
    ASSERT_EQ(ran.code, 0) << ran.err;
    if (first.empty()) first = ran.out;
    EXPECT_EQ(ran.out, first);
  }
}

// Names of files are bytes; JSON is UTF-8.
TEST(Cli, NamesThatAreNotUtf8AreNames) {
  const ScratchFolder scratch;
  const std::string model = scratch / "caf\xe9", out = scratch / "out\xff";
  const std::string text = scratch / "text\xfe";
  std::filesystem::copy(kTiny, model);
  ASSERT_TRUE(write_file_atomically(text, words()));
  const std::vector<std::vector<std::string>> lines = {
      {"compress", model, "-o", out, "--recipe", "ldlq(int(8)) @ q", "--calibration", text,
       "--nsamples", "1", "--seqlen", "8", "--json"},
      {"eval", out, "--text", text, "--ctx", "16", "--windows", "1", "--json"},
      {"bench", out, "-p", "4", "-n", "1", "-r", "1", "--json"},
      {"inspect", out, "--json"},
      {"run", out, "-p", "The \xff", "-n", "2", "--json"},
      {"compare", model, "--recipes", "rtn(int(8)) @ q", "--text", text, "--work",
       scratch / "w\xfd", "--ctx", "16", "--windows", "1", "--no-speed", "--json"},
  };
  for (const auto& line : lines) {
    const Ran ran = run_quern(line);
    EXPECT_EQ(ran.code, 0) << line[0] << " signal " << ran.signal << ": " << ran.err;
  }
}

}  // namespace
}  // namespace quern
