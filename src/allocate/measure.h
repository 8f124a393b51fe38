// SPDX-License-Identifier: Apache-2.0
// Measures curves (allocate/curves.h), one decoder layer at a time.
//
// The calibration activations of the original move through the model; at each layer they give the
// Hessians under which a sample of rows of every matrix is coded by the stages of the mix. A part
// of them, the probe's tokens, moves once more for every unit, with that unit coded by the probe,
// and at the head all are compared with the original: each unit costs the layers behind it, no
// more.
#pragma once

#include <functional>
#include <string>

#include "allocate/curves.h"
#include "allocate/units.h"
#include "calib/corpus.h"

namespace quern {

// The calibration samples, made when they are first asked for.
using CorpusSource = std::function<Result<const Corpus*>()>;

struct MeasureOptions {
  std::string path;  // of the curves, saved after every layer; empty: kept in memory alone
  size_t probe_budget = size_t{4} << 30;  // bytes of activations of all probes together
  std::function<bool(const Json& event)> observe = [](const Json&) { return true; };
};

// Adds what `curves` lacks for these units and the mix's stages. Stages of one solver and codec
// that lie closer than half a bit to each other are not all measured: interpolate() gives the
// others.
Status measure_curves(const Prepared& prepared, const std::vector<Unit>& units,
                      const CorpusSource& corpus, const MeasureOptions& options, Curves& curves);

// Which stages of the mix are measured for a unit.
std::vector<bool> measured_stages(const Prepared& prepared, const Unit& unit);

// A point for each stage of the menu: measured, or between its neighbours of the same solver and
// codec with log loss linear in bits; loss 0 for what is kept. A stage that cannot code the unit
// has a negative loss.
std::vector<CurvePoint> interpolate(const Prepared& prepared, const Unit& unit,
                                    const UnitCurve& curve);

}  // namespace quern
