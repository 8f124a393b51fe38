// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "cli/command.h"

namespace quern::cli {
namespace {

void print_details(const ModelFiles& files, const EvalResult& result) {
  fmt::print("size        {}, {:.3f} bits per weight\n",
             human_bytes(static_cast<double>(files.weight_bytes())), files.bpw());
  fmt::print("speed       {:.1f} tokens/s\n", result.tokens_per_second);
  if (result.has_base) {
    fmt::print("divergence  {:.5f} +- {:.5f} nats mean, {:.4f} at 99 %, same top token {:.2f} %\n",
               result.kl_mean, result.kl_stderr, result.kl_p99, 100 * result.top1);
  }
}

}  // namespace

Action declare_eval(CLI::App& app) {
  struct Options {
    std::string model, base, text;
    EvalOptions eval;
    Activations activations{};
    bool json = false;
  };
  const auto o = std::make_shared<Options>();
  add_model(app, o->model);
  app.add_option("--base", o->base, "model to measure the divergence from");
  add_evaluation(app, o->text, o->eval);
  add_activations(app, o->activations);
  add_kv(app, o->eval.kv);
  add_threads(app);
  add_json(app, o->json);
  app.footer("Example:\n  quern eval out --text wiki.txt --ctx 1024 --base models/tiny --json");
  return [o]() -> Status {
    QUERN_ASSIGN(const std::string text, evaluation_text(o->text));
    QUERN_ASSIGN(const auto model, Model::open(o->model, o->activations));
    std::unique_ptr<Model> base;
    if (!o->base.empty()) {
      QUERN_ASSIGN(base, Model::open(o->base));
    }
    QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(o->model));
    const std::vector<Token> ids = tokenizer->tokenize(text);
    ProgressBar bar(o->json);
    if (!check_context(model->desc(), o->eval.n_ctx, o->eval.kv)) {
      o->eval.n_ctx = std::min(o->eval.n_ctx, model->desc().n_context);
    }
    o->eval.proceed = [&](double done) {
      bar.show(done, "eval");
      return !interrupted();
    };
    QUERN_ASSIGN(const EvalResult result, evaluate(*model, base.get(), ids, o->eval));
    bar.clear();
    const ModelFiles& files = model->files();
    if (o->json) {
      Json json = to_json(result);
      json["bytes"] = files.weight_bytes();
      json["bpw"] = files.bpw();
      json["linear_bpw"] = files.linear_bpw();
      json["protocol"] = protocol_name(o->eval.protocol);
      json["ctx"] = o->eval.n_ctx;
      json["kv"] = o->eval.kv.text;
      json["kv_bits"] = o->eval.kv.bits(model->desc().layers[0].attention.d_head);
      json["text"] = o->text.empty() ? "bundled" : valid_utf8(o->text);
      fmt::print("{}\n", json.dump());
      return {};
    }
    fmt::print("perplexity  {:.4f} +- {:.4f}  ({} tokens, {} windows of {})\n", result.ppl,
               result.ppl_stderr, result.n_tokens, protocol_name(o->eval.protocol), o->eval.n_ctx);
    print_details(files, result);
    return {};
  };
}

}  // namespace quern::cli
