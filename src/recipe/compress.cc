// SPDX-License-Identifier: Apache-2.0
// The order of work. Step 0 codes what stands outside the layers and reads no statistics (the
// embedding), step 1 + i decoder layer i, the last step the head. Each step ends with a file in the
// journal; a resumed run moves its calibration streams through finished layers again, which gives
// the same bits, and so the same output bytes, as a run that was never stopped.
//
// Within a layer the matrices are coded in the order the data meets them (q, k, v; o; gate, up;
// down), each group with statistics that already see the coded matrices before it.
#include "recipe/compress.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/checked.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/parallel.h"
#include "calib/group_inputs.h"
#include "calib/streams.h"
#include "eval/overlap.h"
#include "recipe/dense_tensors.h"
#include "recipe/finished_steps.h"
#include "recipe/fit.h"
#include "recipe/input_groups.h"
#include "recipe/journal.h"
#include "recipe/margins.h"
#include "recipe/output_plan.h"
#include "recipe/prepared.h"
#include "recipe/write_model.h"

namespace quern {
namespace {

using Clock = std::chrono::steady_clock;

// What is known of the inputs of one matrix.
struct CodingInputs {
  MatrixView<const double> hessian;
  MatrixView<const float> drift;
  std::vector<double> mean;                     // empty: its bias is not corrected
  std::shared_ptr<const ActRounding> rounding;  // of what it reads; null: none
};

// bias += (W - W_hat) E[x]; a matrix without a bias stays so.
void correct_bias(const Matrix<float>& w, const Codec& codec, const CodedMatrix& codes,
                  std::span<const double> mean, std::vector<float>& bias) {
  constexpr int64_t kRows = 64;
  if (bias.empty()) return;
  parallel_for(w.rows(), round_up(kRows, codec.decode_unit()), [&](int64_t begin, int64_t end) {
    Matrix<float> w_hat(end - begin, w.cols());
    codec.decode(codes.view(), begin, end - begin, w_hat.data());
    for (int64_t i = begin; i < end; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < w.cols(); ++j) {
        sum += (static_cast<double>(w(i, j)) - w_hat(i - begin, j)) * mean[static_cast<size_t>(j)];
      }
      bias[static_cast<size_t>(i)] += static_cast<float>(sum);
    }
  });
}

class Compression {
 public:
  explicit Compression(const CompressOptions& options) : options_(options) {}

  Result<CompressResult> run() {
    const auto start = Clock::now();
    QUERN_TRY(prepare());
    QUERN_ASSIGN(Journal journal, Journal::open(out_, job_));
    journal_ = &journal;
    finished_ = std::make_unique<FinishedSteps>(journal, plan_);
    QUERN_TRY(announce());
    QUERN_ASSIGN(margins_, gather_margins(*prepared_, plan_, corpus_, options_.seed,
                                          [&](double) { return proceed(0, 0, "gradients"); }));
    QUERN_TRY(code_ends_before());
    if (needs_streams_) {
      streams_ =
          std::make_unique<Streams>(prepared_->fused->desc(), corpus_, source_ends_, coded_ends_);
    }
    for (int layer = 0; layer < n_layers(); ++layer) QUERN_TRY(layer_step(layer));
    QUERN_TRY(code_head());
    QUERN_TRY(report("progress", {{"what", "write"}, {"done", 1.0}}));
    packed_.basis = prepared_->basis;
    QUERN_TRY(write_model(*prepared_->files, plan_, packed_, journal, out_, options_.accept));
    return finish(start);
  }

 private:
  int n_layers() const { return static_cast<int>(prepared_->files->desc().layers.size()); }
  int head_step() const { return n_layers() + 1; }

  Status report(const char* event, Json fields) {
    fields["event"] = event;
    if (!options_.observe(fields)) return cancelled();
    return {};
  }
  // Progress inside a step: `share` of step `step`, never less than was shown before.
  bool proceed(int step, double share, const char* what) {
    done_ = std::max(done_, (step + share) / (head_step() + 1));
    return report("progress", {{"what", what}, {"step", step}, {"done", done_}}).has_value();
  }
  // Progress through a layer's step, whose parts are the matrices to code and the final runs.
  bool proceed_in_layer(int layer, const char* what) {
    const auto n = static_cast<double>(plan_.of_layer(layer).size() + 1);
    return proceed(layer + 1, std::min(1.0, n_coded_in_layer_ / n), what);
  }

  Status prepare() {
    QUERN_ASSIGN(out_, output_folder(options_.out, options_.model,
                                     options_.force ? Existing::kReplace : Existing::kRefuse));
    QUERN_ASSIGN(prepared_, quern::prepare(options_.model, options_.recipe, options_.seed));
    if (prepared_->recipe.mix() != nullptr) {
      return usage_error("recipe: '{}' leaves matrices to an allocator", options_.recipe);
    }
    result_.notes = prepared_->notes;
    QUERN_ASSIGN(plan_, OutputPlan::make(*prepared_->files, prepared_->recipe, prepared_->basis));
    dense_ = std::make_unique<DenseTensors>(*prepared_->fused, plan_);
    needs_streams_ = prepared_->recipe.needs_calibration();
    fitting_ = std::make_unique<Fitting>(*prepared_->files, prepared_->recipe, options_.seed,
                                         prepared_->basis);
    if (needs_streams_ && options_.given_corpus != nullptr) {
      corpus_ = *options_.given_corpus;
    } else if (needs_streams_) {
      QUERN_ASSIGN(corpus_, gather_corpus(options_));
    }
    packed_.recipe = prepared_->recipe.canonical();
    packed_.recipe_digest = digest_of(packed_.recipe);
    packed_.source_digest = prepared_->files->digest();
    packed_.quern_version = QUERN_VERSION;
    packed_.seed = options_.seed;
    if (needs_streams_) {
      packed_.calibration = {
          {"digest", corpus_.digest}, {"tokens", corpus_.n_tokens()}, {"text", corpus_.origin}};
      packed_.calibration["runs"] = sketch_runs(corpus_.samples);
    }
    job_ = {{"recipe", packed_.recipe},
            {"source", packed_.source_digest},
            {"calibration", packed_.calibration},
            {"seed", packed_.seed},
            {"version", QUERN_VERSION}};
    return {};
  }

  size_t stream_bytes() const {
    return needs_streams_ ? Streams::n_bytes(prepared_->files->desc(), corpus_.n_tokens()) : 0;
  }

  Status announce() {
    int resumed = 0;
    while (journal_->has(resumed)) ++resumed;
    Json notes = result_.notes;
    return report("plan",
                  {{"recipe", packed_.recipe},
                   {"matrices", plan_.n_coded()},
                   {"layers", n_layers()},
                   {"calibration", packed_.calibration},
                   {"peak_bytes",
                    plan_.peak_bytes(needs_streams_, !prepared_->basis.empty()) + stream_bytes()},
                   {"finished_steps", resumed},
                   {"notes", notes}});
  }

  // Codes one matrix; its planes go to `out`, its report to `reports`, itself into `coded`. The
  // target is W, or W (I + drift P) where inputs have drifted (GramTap::drift).
  Status code(const WeightPlan& weight, const CodingInputs& inputs, std::vector<OutputTensor>& out,
              Json& reports, LinearWeight* coded) {
    QUERN_ASSIGN(Matrix<float> w, prepared_->fused->weight(weight.id));
    QUERN_TRY(check_finite(w, weight.id));
    if (inputs.drift.data != nullptr) {
      add_product(static_cast<float>(weight.solver->drift()), inputs.drift, w);
      QUERN_TRY(check_finite(w, weight.id));
    }
    const Codec& codec = weight.solver->codec();
    QUERN_ASSIGN(CodedMatrix codes, CodedMatrix::create(codec, w.rows(), w.cols()));
    SolveInput input{w.view(), inputs.hessian};
    if (const auto margins = margins_.find(weight.id); margins != margins_.end()) {
      input.row_gradients = margins->second.rows;
      input.column_gradients = margins->second.columns;
    }
    auto solved = weight.solver->solve(input, codes);
    if (!solved) return tl::unexpected(in_context(solved.error(), to_string(weight.id)));
    reports[weight.name] = {{"error", solved->relative()},
                            {"damping", solved->damping},
                            {"damping_raises", solved->damping_raises},
                            {"fallback", solved->fallback}};
    add_planes(weight, codes, out);
    if (inputs.rounding != nullptr) add_ranges(weight, *inputs.rounding, out);
    QUERN_ASSIGN(std::vector<float> bias, prepared_->fused->bias(weight.id));
    if (!inputs.mean.empty()) correct_bias(w, codec, codes, inputs.mean, bias);
    dense_->round_bias(weight, bias);
    dense_->add_bias(weight, bias, out);
    if (coded == nullptr) return {};
    *coded = coded_weight(std::move(codes), codec, std::move(bias));
    coded->rounding = inputs.rounding;
    *coded = in_runtime_form(std::move(*coded), codec);
    return {};
  }

  void note_once(std::string note) {
    std::vector<std::string>& notes = result_.notes;
    if (std::find(notes.begin(), notes.end(), note) == notes.end()) {
      notes.push_back(std::move(note));
    }
  }

  Status finish_step(int step, const std::vector<OutputTensor>& tensors, const Json& report) {
    QUERN_TRY(journal_->write(step, tensors, report));
    return record(step, report);
  }
  Status record(int step, const Json& report) {
    return finished_->record(step, report, packed_, result_.notes);
  }

  Status code_ends_before() {
    const int step = 0;
    std::shared_ptr<SafetensorsFile> file;
    if (journal_->has(step)) {
      QUERN_ASSIGN(file, journal_->read(step));
      const auto restored = fitting_->restore_start(*file);
      if (!restored) return journal_->damaged(step, restored.error().message);
    } else {
      QUERN_TRY(fitting_->fit_start(corpus_, result_.notes));
    }
    QUERN_ASSIGN(source_ends_, prepared_->fused->ends());
    coded_ends_ = source_ends_;
    const WeightPlan& embedding = plan_.at({Role::kEmbed, -1, -1});
    if (!journal_->has(step)) {
      std::vector<OutputTensor> tensors;
      Json reports = Json::object();
      for (const WeightPlan* weight : plan_.of_layer(-1)) {
        if (weight->id.role == Role::kLmHead) continue;
        if (!proceed(step, 0, "code")) return cancelled();
        if (weight->fate == Fate::kCoded) {
          QUERN_TRY(code(*weight, {}, tensors, reports, nullptr));
        } else {
          QUERN_TRY(dense_->add(*weight, tensors));
        }
      }
      add_operators(prepared_->basis, BasisChange::kAllLayers, tensors);
      for (OutputTensor& slice : fitting_->slices(-1)) tensors.push_back(std::move(slice));
      QUERN_TRY(finish_step(step, tensors, {{"matrices", reports}}));
    } else {
      QUERN_ASSIGN(const Json report, journal_->report(step));
      QUERN_TRY(record(step, report));
    }
    if (embedding.fate != Fate::kCoded) return {};
    QUERN_ASSIGN(file, journal_->read(step));
    QUERN_ASSIGN(coded_ends_.embed, finished_->reload(step, embedding, file));
    if (prepared_->fused->desc().tied_head) coded_ends_.head = coded_ends_.embed;
    return {};
  }

  Status layer_step(int layer) {
    const int step = layer + 1;
    n_coded_in_layer_ = 0;
    Json report;
    std::shared_ptr<SafetensorsFile> file;
    if (journal_->has(step)) {
      QUERN_ASSIGN(report, journal_->report(step));
      QUERN_TRY(record(step, report));
      QUERN_ASSIGN(file, journal_->read(step));
      if (prepared_->recipe.is_fitted()) {
        const auto fitted = fitting_->restore(layer, report.value("fitted", Json()), *file);
        if (!fitted) return journal_->damaged(step, fitted.error().message);
      }
      if (!needs_streams_) return {};
    } else if (prepared_->recipe.is_fitted()) {
      const auto go = [&] { return proceed_in_layer(layer, "fit"); };
      QUERN_TRY(fitting_->fit(layer, *streams_, corpus_.n_tokens(), go, result_.notes));
    }
    LayerWeights source, coded;
    if (needs_streams_) {
      QUERN_ASSIGN(source, prepared_->fused->layer(layer));
      coded = source;
    }
    if (file != nullptr) {
      for (const WeightPlan* weight : plan_.of_layer(layer)) {
        if (weight->fate != Fate::kCoded) continue;
        QUERN_ASSIGN(coded.at(weight->id.role, weight->id.expert),
                     finished_->reload(step, *weight, file));
      }
      return advance(layer, source, coded);
    }
    std::vector<OutputTensor> tensors;
    Json reports = Json::object();
    for (const WeightPlan* weight : plan_.of_layer(layer)) {
      if (weight->fate == Fate::kDense) QUERN_TRY(dense_->add(*weight, tensors));
    }
    for (const InputGroup& group : kInputGroups) {
      QUERN_TRY(code_group(layer, group, source, coded, tensors, reports));
    }
    if (needs_streams_) QUERN_TRY(advance(layer, source, coded));
    add_operators(prepared_->basis, layer, tensors);
    for (OutputTensor& slice : fitting_->slices(layer)) tensors.push_back(std::move(slice));
    report = {{"matrices", reports}, {"layer", layer}};
    if (prepared_->recipe.is_fitted()) report["fitted"] = fitting_->report(layer);
    if (needs_streams_) report["output_error"] = streams_->relative_error();
    QUERN_TRY(finish_step(step, tensors, report));
    return this->report("layer", {{"layer", layer},
                                  {"matrices", reports},
                                  {"output_error", report.value("output_error", -1.0)}});
  }

  Status advance(int layer, const LayerWeights& source, const LayerWeights& coded) {
    const auto go = [&] { return proceed_in_layer(layer, "run the layer"); };
    if (!streams_->advance(layer, source, coded, go)) return cancelled();
    for (const WeightId& id : prepared_->files->store().weight_ids()) {
      if (id.layer == layer)
        prepared_->files->store().checkpoint().release(prepared_->files->store().stored(id));
    }
    result_.output_error = streams_->relative_error();
    return {};
  }

  // Experts whose Hessians fit the budget together.
  int experts_at_once(int64_t n_in) const {
    const size_t one = static_cast<size_t>(n_in * n_in) * sizeof(double);
    return static_cast<int>(std::max<size_t>(1, options_.hessian_budget / one));
  }

  Status code_group(int layer, const InputGroup& group, const LayerWeights& source,
                    LayerWeights& coded, std::vector<OutputTensor>& tensors, Json& reports) {
    std::vector<const WeightPlan*> members;
    bool needs_hessian = false, drifts = false;
    for (const WeightPlan* weight : plan_.of_layer(layer)) {
      if (weight->fate != Fate::kCoded || !group.has(weight->id.role)) continue;
      members.push_back(weight);
      needs_hessian = needs_hessian || weight->solver->needs_hessian();
      drifts = drifts || weight->solver->drift() > 0;
    }
    if (members.empty()) return {};
    const int64_t n_experts =
        prepared_->files->desc().layers[static_cast<size_t>(layer)].mlp.n_experts;
    const bool is_split = group.is_per_expert && n_experts > 0;
    const int first = is_split ? 0 : -1;
    const int last = is_split ? static_cast<int>(n_experts) - 1 : -1;
    if (is_split && drifts) {
      // A token may reach an expert in one stream and not in the other.
      note_once("drift: the inputs of experts have no partners; their targets stay as they are");
      drifts = false;
    }
    const int at_once = is_split ? experts_at_once(members[0]->n_in) : 1;
    for (int e = first; e <= last; e += at_once) {
      // Statistics are of rounded inputs, so that members share them that round alike.
      for (auto from = members.begin(), to = from; from != members.end(); from = to) {
        to = std::stable_partition(from, members.end(), [act = (*from)->act](const auto* weight) {
          return weight->act == act;
        });
        const GroupInputs::Wanted wanted{
            group.shown,   e,      std::min(last, e + at_once - 1),   (*from)->n_in, (*from)->act,
            needs_hessian, drifts, prepared_->basis.form().has_biases};
        QUERN_TRY(code_together(layer, wanted, {from, to}, source, coded, tensors, reports));
      }
    }
    return {};
  }

  // Codes those of some experts that share their statistics.
  Status code_together(int layer, const GroupInputs::Wanted& wanted,
                       std::span<const WeightPlan* const> members, const LayerWeights& source,
                       LayerWeights& coded, std::vector<OutputTensor>& tensors, Json& reports) {
    GroupInputs statistics(wanted);
    const auto go = [&] { return proceed_in_layer(layer, "collect statistics"); };
    if (!statistics.gather(streams_.get(), layer, source, coded, go)) return cancelled();
    for (const WeightPlan* weight : members) {
      const int expert = weight->id.expert;
      if (expert < wanted.first_expert || expert > wanted.last_expert) continue;
      if (!proceed_in_layer(layer, "code")) return cancelled();
      CodingInputs inputs{statistics.hessian(expert), {}, {}, statistics.rounding(expert)};
      if (weight->solver->drift() > 0) inputs.drift = statistics.drift(expert);
      inputs.mean = statistics.mean(expert);
      LinearWeight* target = needs_streams_ ? &coded.at(weight->id.role, expert) : nullptr;
      QUERN_TRY(code(*weight, inputs, tensors, reports, target));
      ++n_coded_in_layer_;
    }
    return {};
  }

  Status code_head() {
    const int step = head_step();
    if (journal_->has(step)) {
      QUERN_ASSIGN(const Json report, journal_->report(step));
      return record(step, report);
    }
    std::vector<OutputTensor> tensors;
    Json reports = Json::object();
    const std::vector<const WeightPlan*> outside = plan_.of_layer(-1);
    const auto head = std::find_if(outside.begin(), outside.end(), [](const WeightPlan* weight) {
      return weight->id.role == Role::kLmHead;
    });
    if (head != outside.end() && (*head)->fate == Fate::kDense) {
      QUERN_TRY(dense_->add(**head, tensors));
    } else if (head != outside.end()) {
      GroupInputs statistics(
          {Role::kLmHead, -1, -1, (*head)->n_in, (*head)->act, (*head)->solver->needs_hessian()});
      const Matrix<float> hidden =
          needs_streams_ ? streams_->final_hidden(coded_ends_) : Matrix<float>();
      statistics.gather(hidden.view());
      const CodingInputs inputs{statistics.hessian(-1), {}, {}, statistics.rounding(-1)};
      QUERN_TRY(code(**head, inputs, tensors, reports, nullptr));
    }
    return finish_step(step, tensors, {{"matrices", reports}});
  }

  Result<CompressResult> finish(Clock::time_point start) {
    QUERN_TRY(weigh(out_, result_));
    result_.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    // The output is in its place: whoever wants to stop now comes too late.
    (void)report("done", {{"out", valid_utf8(out_)},
                          {"bytes", result_.weight_bytes},
                          {"bpw", result_.bpw},
                          {"linear_bpw", result_.linear_bpw},
                          {"output_error", result_.output_error},
                          {"seconds", result_.seconds},
                          {"notes", result_.notes}});
    return result_;
  }

  const CompressOptions& options_;
  std::string out_;
  std::unique_ptr<Prepared> prepared_;
  std::unique_ptr<Fitting> fitting_;
  std::unique_ptr<DenseTensors> dense_;
  OutputPlan plan_;
  EndWeights source_ends_, coded_ends_;
  std::map<WeightId, Margins> margins_;  // of matrices whose solvers ask for them
  bool needs_streams_ = false;
  Corpus corpus_;
  std::unique_ptr<Streams> streams_;
  Packed packed_;
  Json job_;
  Journal* journal_ = nullptr;
  std::unique_ptr<FinishedSteps> finished_;
  double done_ = 0;
  int n_coded_in_layer_ = 0;
  CompressResult result_;
};

// The calibration samples, or `n_held_out` others.
Result<Corpus> gather(const CompressOptions& options, int64_t n_held_out) {
  QUERN_ASSIGN(const auto files, ModelFiles::open(options.model));
  CorpusOptions corpus = options.corpus;
  corpus.seed = options.seed;
  corpus.length = std::min(corpus.length, files->desc().n_context);
  if (options.calibration.empty()) {
    if (n_held_out > 0) {
      corpus.first_drawn = corpus.n_samples;
      corpus.n_samples = n_held_out;
    }
    QUERN_ASSIGN(const auto model, Model::open(options.model));
    return corpus_from_model(*model, corpus, [&](double done) {
      return options.observe({{"event", "progress"},
                              {"what", "draw calibration text"},
                              {"done", 0.0},
                              {"part", done}});
    });
  }
  QUERN_ASSIGN(const std::string text, read_file(options.calibration));
  QUERN_ASSIGN(const auto tokenizer, Tokenizer::open(options.model));
  const std::string origin =
      valid_utf8(std::filesystem::path(options.calibration).filename().string());
  if (n_held_out == 0) return corpus_from_text(files->desc(), *tokenizer, text, origin, corpus);
  QUERN_ASSIGN(Corpus others,
               held_out_from_text(files->desc(), *tokenizer, text, origin, corpus, n_held_out));
  if (others.samples.empty()) {
    return error("{}: the calibration windows leave none to check with; give more text", origin);
  }
  return others;
}

}  // namespace

Status weigh(const std::string& folder, CompressResult& result) {
  QUERN_ASSIGN(const auto written, ModelFiles::open(folder));
  result.n_params = written->n_params();
  result.weight_bytes = written->weight_bytes();
  result.bpw = written->bpw();
  result.linear_bpw = written->linear_bpw();
  return {};
}

Result<Corpus> gather_corpus(const CompressOptions& options) { return gather(options, 0); }

Result<Corpus> gather_held_out(const CompressOptions& options, int64_t n) {
  return gather(options, n);
}

Result<CompressResult> compress(const CompressOptions& options) {
  return Compression(options).run();
}

}  // namespace quern
