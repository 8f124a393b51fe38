// SPDX-License-Identifier: Apache-2.0
// What coding each unit of a model costs: measured once for a model, a basis and a calibration,
// kept in a file, and asked for any size afterwards.
//
// A unit is what one selector of a recipe can name: the matrices of one role in one layer (those of
// all experts together), or an end of the model. Its KL under a code is
//     kl(code) = probe_kl * loss(code) / loss(probe),
// with loss the relative tr(E H E^T) of a sample of rows, and probe_kl the divergence of the
// original from itself with this one unit coded by the probe, in nats per token, measured or
// foretold from gradients. KL is quadratic in
// small errors and errors of different units are nearly uncorrelated, so that a plan's KL is the
// sum over its units.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "formats/json.h"

namespace quern {

struct CurvePoint {
  double loss = 0;     // relative, of the sample
  double seconds = 0;  // per weight, on all threads
};

struct UnitCurve {
  double probe_kl = -1;  // < 0: not measured yet
  double probe_loss = 0;
  std::map<std::string, CurvePoint> points;  // by the text of the code
};

struct Curves {
  std::string key;                         // digest of what they were measured on
  std::map<std::string, UnitCurve> units;  // by the unit's selector

  // A file that is not there gives empty curves; one of another key, or a damaged one, is an error.
  static Result<Curves> load(const std::string& path, const std::string& key);
  Status save(const std::string& path) const;  // written aside, then renamed
};

// Finite, positive where it must be; `where` names the source in errors.
Result<Curves> curves_from_json(const Json& json, const std::string& where);

}  // namespace quern
