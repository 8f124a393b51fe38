// SPDX-License-Identifier: Apache-2.0
#include "recipe/prepared.h"

namespace quern {

Result<std::unique_ptr<Prepared>> prepare(const std::string& model, const std::string& recipe,
                                          uint64_t seed) {
  auto made = std::make_unique<Prepared>();
  QUERN_ASSIGN(made->recipe, Recipe::load(recipe));
  QUERN_ASSIGN(made->files, ModelFiles::open(model));
  const ModelDesc& source = made->files->desc();
  if (!made->files->packed().empty()) {
    return usage_error("{} is already compressed with '{}'; compress the original", model,
                       made->files->packed().recipe);
  }
  QUERN_TRY(made->recipe.check(source));
  BasisChange& basis = made->basis;
  for (size_t i = 0; i < made->recipe.transforms().size(); ++i) {
    basis.begin_stage(static_cast<int>(i));
    const ModelDesc desc = in_basis(source, basis);
    QUERN_TRY(made->recipe.transforms()[i]->plan(desc, seed, basis, made->notes));
    QUERN_TRY(check_form(basis, source));
  }
  QUERN_TRY(check_basis(basis, in_basis(source, basis)));
  made->fused = std::make_unique<FusedSource>(*made->files, basis);
  return made;
}

}  // namespace quern
