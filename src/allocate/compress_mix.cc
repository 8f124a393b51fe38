// SPDX-License-Identifier: Apache-2.0
#include "allocate/compress_mix.h"

#include <cmath>
#include <filesystem>
#include <optional>

#include "allocate/allocate.h"
#include "base/digest.h"
#include "base/file.h"
#include "calib/streams.h"
#include "eval/divergence.h"
#include "eval/mean.h"
#include "recipe/write_model.h"

namespace quern {
namespace {

namespace fs = std::filesystem;

constexpr int kTrials = 4;  // plans for a divergence, each for less than the last
constexpr double kTrialMargin = 0.97;
constexpr int64_t kHeldOut = 16;  // windows of the check
constexpr char kPlanFile[] = "/quern_plan.json";

class MixCompression {
 public:
  explicit MixCompression(const MixOptions& options) : options_(options) {}

  Result<MixResult> run() {
    QUERN_TRY(check_options());
    QUERN_ASSIGN(prepared_, prepare(options_.compress.model, options_.compress.recipe,
                                    options_.compress.seed));
    QUERN_ASSIGN(units_, units_of(*prepared_));
    QUERN_TRY(make_plan());
    if (options_.dry_run) return result_;
    for (int trial = 1;; ++trial) {
      QUERN_TRY(compress_planned());
      if (result_.is_compressed) return result_;
      if (trial == kTrials) {
        return error("{} plans in turn diverge by more than {} nats per token, the last by {}",
                     kTrials, options_.target.kl, measured_);
      }
      planned_for_ = kTrialMargin * options_.target.kl * result_.plan.kl / measured_;
      QUERN_TRY(make_plan());
    }
  }

 private:
  bool has_plan_file() const {
    std::error_code ignored;
    return !options_.plan.empty() && fs::exists(options_.plan, ignored);
  }

  Status check_options() {
    QUERN_ASSIGN(const Recipe recipe, Recipe::load(options_.compress.recipe));
    if (has_plan_file() && options_.target.is_set()) {
      return usage_error("{} is a plan already; without a target it is carried out", options_.plan);
    }
    if (!has_plan_file() && !options_.target.is_set() &&
        (recipe.mix() == nullptr || recipe.mix()->bits <= 0)) {
      return usage_error("the recipe's mix names no bits; give a size, bits or a divergence");
    }
    if (options_.dry_run) return {};
    const Existing existing = options_.compress.force ? Existing::kReplace : Existing::kRefuse;
    QUERN_ASSIGN(out_, output_folder(options_.compress.out, options_.compress.model, existing));
    return {};
  }

  Status make_plan() {
    if (has_plan_file()) {
      QUERN_ASSIGN(result_.plan, read_plan(options_.plan));
      if (result_.plan.recipe != prepared_->recipe.canonical()) {
        return usage_error("{}: it was made for the recipe '{}'", options_.plan,
                           result_.plan.recipe);
      }
      QUERN_TRY(finish_plan(*prepared_, units_, result_.plan));
      return announce();
    }
    if (!allocation_) {
      QUERN_ASSIGN(const std::string text, calibration_text());
      Allocation::Sources sources;
      sources.key = curves_key(*prepared_, options_.compress.seed, text);
      sources.path = options_.curves;
      if (sources.path.empty() && !options_.curves_folder.empty()) {
        sources.path = fmt::format("{}/curves-{}.json", options_.curves_folder, sources.key);
      }
      sources.corpus = [this] { return corpus(); };
      sources.observe = options_.compress.observe;
      QUERN_ASSIGN(allocation_, Allocation::make(*prepared_, sources));
    }
    QUERN_ASSIGN(result_.plan, best());
    if (!options_.plan.empty()) {
      QUERN_TRY(write_file_atomically(options_.plan, result_.plan.to_json().dump(1) + "\n"));
    }
    if (options_.check) {
      auto uniform = allocation_->uniform_within_bytes(result_.plan.bytes);
      is_checked_ = uniform.has_value();  // there may be none
      if (uniform) uniform_ = std::move(*uniform);
    }
    return announce();
  }

  // Says which samples will be drawn.
  Result<std::string> calibration_text() const {
    const CompressOptions& options = options_.compress;
    std::string text = "drawn from the model";
    if (!options.calibration.empty()) {
      QUERN_ASSIGN(text, read_file(options.calibration));
      text = digest_of(text);
    }
    return fmt::format("{}|{}|{}", text, options.corpus.n_samples, options.corpus.length);
  }

  // Made when it is first needed: a plan from known curves needs none.
  Result<const Corpus*> corpus() {
    if (options_.compress.given_corpus != nullptr) return options_.compress.given_corpus;
    if (corpus_.samples.empty()) {
      QUERN_ASSIGN(corpus_, gather_corpus(options_.compress));
    }
    return &corpus_;
  }

  Result<Plan> best() const {
    const Allocation& allocation = *allocation_;
    const SizeTarget& target = options_.target;
    if (target.bytes > 0) return allocation.within_bytes(target.bytes);
    if (target.kl > 0) return allocation.within_kl(planned_for_ > 0 ? planned_for_ : target.kl);
    if (target.bpw > 0) {
      const double bytes = target.bpw * static_cast<double>(prepared_->files->n_params()) / 8;
      return allocation.within_bytes(static_cast<uint64_t>(std::floor(bytes)));
    }
    return allocation.within_bits(prepared_->recipe.mix()->bits);
  }

  Status announce() {
    Plan& plan = result_.plan;
    const ModelDesc& desc = prepared_->source_desc();
    const CorpusOptions& samples = options_.compress.corpus;
    plan.peak_bytes +=
        Streams::n_bytes(desc, samples.n_samples * std::min(samples.length, desc.n_context));
    Json event = plan.to_json();
    event["event"] = "allocation";
    if (is_checked_) {
      event["uniform"] = {{"bytes", uniform_.bytes}, {"expected_kl", uniform_.kl}};
    }
    return options_.compress.observe(event) ? Status() : cancelled();
  }

  std::string uniform_folder() const { return out_ + ".uniform"; }

  // Where the plan misses a target for the divergence, is_compressed stays false.
  Status compress_planned() {
    CompressOptions options = options_.compress;
    QUERN_ASSIGN(options.given_corpus, corpus());
    QUERN_ASSIGN(const Recipe recipe, recipe_of(*prepared_, units_, result_.plan));
    options.recipe = recipe.canonical();
    bool is_far = false, is_worse = false;
    options.accept = [&, this](const std::string& folder) -> Status {
      if (options_.target.kl > 0) {
        QUERN_ASSIGN(measured_, options_.divergence(folder));
        is_far = !(measured_ <= options_.target.kl);  // NaN is far
        if (is_far) return error("diverges by {} nats per token", measured_);
      }
      if (is_checked_) {
        QUERN_ASSIGN(result_.planned_kl, divergence_of(folder));
        QUERN_TRY(measure_uniform());
        is_worse = !(result_.planned_kl <= result_.uniform_kl);
        if (is_worse) return error("the uniform plan is closer to the original");
      }
      QUERN_TRY(write_proof(folder));
      return options_.compress.accept == nullptr ? Status() : options_.compress.accept(folder);
    };
    auto compressed = compress(options);
    if (!compressed && (is_far || is_worse)) {
      std::error_code ignored;
      fs::remove_all(out_ + ".refused", ignored);
      if (is_far && std::isfinite(measured_)) return {};
      if (is_worse) return ship_uniform();
    }
    if (!compressed) return tl::unexpected(compressed.error());
    std::error_code ignored;
    fs::remove_all(uniform_folder(), ignored);
    result_.compressed = std::move(*compressed);
    result_.is_compressed = true;
    return {};
  }

  // Makes the uniform model, unless a run that was stopped here has.
  Status measure_uniform() {
    CompressOptions options = options_.compress;
    QUERN_ASSIGN(options.given_corpus, corpus());
    options.accept = nullptr;
    options.out = uniform_folder();
    options.force = true;
    QUERN_ASSIGN(const Recipe recipe, recipe_of(*prepared_, units_, uniform_));
    options.recipe = recipe.canonical();
    if (!is_made_by(options)) QUERN_TRY(compress(options));
    QUERN_ASSIGN(result_.uniform_kl, divergence_of(uniform_folder()));
    return {};
  }

  bool is_made_by(const CompressOptions& options) const {
    std::error_code ignored;
    if (!fs::exists(options.out, ignored)) return false;
    const auto files = ModelFiles::open(options.out);
    if (!files) return false;
    const Packed& packed = (*files)->packed();
    return packed.recipe == options.recipe && packed.seed == options.seed &&
           packed.quern_version == QUERN_VERSION &&
           packed.source_digest == prepared_->files->digest() &&
           packed.calibration.value("digest", options.given_corpus->digest) ==
               options.given_corpus->digest;
  }

  Status ship_uniform() {
    result_.plan = uniform_;
    QUERN_TRY(write_proof(uniform_folder()));
    if (options_.compress.accept != nullptr) {
      QUERN_TRY(options_.compress.accept(uniform_folder()));
    }
    std::error_code problem;
    if (options_.compress.force) fs::remove_all(out_, problem);
    fs::rename(uniform_folder(), out_, problem);
    if (problem) return error("{}: {}", out_, problem.message());
    QUERN_TRY(weigh(out_, result_.compressed));
    result_.is_compressed = true;
    return {};
  }

  Status write_proof(const std::string& folder) const {
    Json json = result_.plan.to_json();
    if (is_checked_) {
      json["check"] = {{"text", "held-out calibration text: " + held_out_.origin},
                       {"tokens", held_out_.n_tokens()},
                       {"planned_kl", result_.planned_kl},
                       {"uniform_kl", result_.uniform_kl},
                       {"uniform_bytes", uniform_.bytes}};
    }
    return write_file_atomically(folder + kPlanFile, json.dump(1) + "\n");
  }

  Status draw_held_out() {
    if (!held_out_.samples.empty()) return {};
    QUERN_ASSIGN(held_out_, gather_held_out(options_.compress, kHeldOut));
    return {};
  }

  // Mean over all positions of the held-out text.
  Result<double> divergence_of(const std::string& folder) {
    QUERN_TRY(draw_held_out());
    QUERN_ASSIGN(const auto base, Model::open(options_.compress.model));
    QUERN_ASSIGN(const auto model, Model::open(folder, options_.activations));
    std::vector<double> all;
    for (const std::vector<Token>& sample : held_out_.samples) {
      if (!options_.compress.observe({{"event", "progress"}, {"what", "check"}, {"done", 1.0}})) {
        return cancelled();
      }
      const auto n = static_cast<int64_t>(sample.size());
      Matrix<float> p_hidden(n, base->desc().d_model), q_hidden(n, base->desc().d_model);
      QUERN_ASSIGN(KvCache p_cache, base->make_cache(n));
      QUERN_ASSIGN(KvCache q_cache, model->make_cache(n));
      QUERN_TRY(base->forward(p_cache, sample, p_hidden.view()));
      QUERN_TRY(model->forward(q_cache, sample, q_hidden.view()));
      const auto logits_of = [](const Model& of, const Matrix<float>& hidden) -> LogitsOf {
        return [&](int64_t row, MatrixView<float> logits) {
          of.logits(hidden.view().row_range(row, logits.rows), logits);
        };
      };
      const LogitsOf other = logits_of(*model, q_hidden);
      const auto kl = divergences_from(logits_of(*base, p_hidden), {&other, 1}, n,
                                       base->desc().n_vocab, [] { return true; });
      all.insert(all.end(), kl[0].begin(), kl[0].end());
    }
    return mean_of(all).value;
  }

  const MixOptions& options_;
  std::string out_;
  std::unique_ptr<Prepared> prepared_;
  std::vector<Unit> units_;
  Corpus corpus_, held_out_;
  std::optional<Allocation> allocation_;
  Plan uniform_;
  double planned_for_ = 0;  // the divergence to expect, once a plan has missed the target
  double measured_ = 0;     // of the last plan, where a divergence is the target
  bool is_checked_ = false;
  MixResult result_;
};

}  // namespace

Result<bool> has_mix(const std::string& recipe) {
  QUERN_ASSIGN(const Recipe parsed, Recipe::load(recipe));
  return parsed.mix() != nullptr;
}

Result<MixResult> compress_mix(const MixOptions& options) { return MixCompression(options).run(); }

Result<CompressResult> compress_any(const CompressOptions& options,
                                    const std::string& curves_folder) {
  QUERN_ASSIGN(const bool is_mix, has_mix(options.recipe));
  if (!is_mix) return compress(options);
  MixOptions mix;
  mix.compress = options;
  mix.curves_folder = curves_folder;
  mix.check = false;
  QUERN_ASSIGN(MixResult result, compress_mix(mix));
  return std::move(result.compressed);
}

}  // namespace quern
