// SPDX-License-Identifier: Apache-2.0
// What finished steps left in the journal, taken back. The journal's files may have been damaged by
// something else: every error names the step's file and says what to remove.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/linear.h"
#include "model/packed.h"
#include "recipe/journal.h"
#include "recipe/output_plan.h"

namespace quern {

class FinishedSteps {
 public:
  // Both must outlive this.
  FinishedSteps(const Journal& journal, const OutputPlan& plan) : journal_(journal), plan_(plan) {}

  // Takes the report of a step over into the header of the output, what is remarkable into `notes`.
  Status record(int step, const Json& report, Packed& packed, std::vector<std::string>& notes);
  // A coded weight, mapped from the step's file.
  Result<LinearWeight> reload(int step, const WeightPlan& weight,
                              const std::shared_ptr<SafetensorsFile>& file) const;

 private:
  std::shared_ptr<const Codec> codec_named(const std::string& spec);

  const Journal& journal_;
  const OutputPlan& plan_;
  std::map<std::string, std::shared_ptr<const Codec>> codecs_;
};

}  // namespace quern
