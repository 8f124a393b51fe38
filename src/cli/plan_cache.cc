// SPDX-License-Identifier: Apache-2.0
// Caches by `--kv auto:BITS`: planned for a model, and shown as the recipe that --kv takes as well.
#include "allocate/kv_plan.h"
#include "cli/command.h"
#include "cli/compress_options.h"

namespace quern::cli {

Status plan_cache(const Model& model, const std::string& calibration, Output output,
                  KvCacheRecipe& kv) {
  if (!kv.mix) return {};
  ProgressBar bar(output == Output::kQuiet);
  KvPlanOptions options;
  options.calibration = calibration;
  options.folder = cache_folder();
  options.proceed = [&](double done, std::string_view what) {
    bar.show(done, std::string(what));
    return !interrupted();
  };
  QUERN_ASSIGN(KvPlan plan, plan_kv(model, *kv.mix, options));
  bar.note(fmt::format("cache   {}", plan.recipe.text));
  bar.note(fmt::format("        {:.3f} bits, expected KL {:.5f}", plan.bits, plan.kl));
  if (!plan.uniform.empty()) {
    bar.note(fmt::format("uniform {}: {:.3f} bits, expected KL {:.5f}", plan.uniform,
                         plan.uniform_bits, plan.uniform_kl));
  }
  kv = std::move(plan.recipe);
  return {};
}

}  // namespace quern::cli
