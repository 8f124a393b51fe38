// SPDX-License-Identifier: Apache-2.0
// KL against bytes in characters, for a terminal.
//
//   KL
//   0.64 |A
//        |....
//        |    ...B   c
//   0.02 |          .....D
//        +----------------------
//         9.1 MB            18 MB
//
// The better of two models is lower and further left. Capitals are the models that nothing beats
// in both, small letters the others; dots are the least divergence that so many bytes buy. KL is on
// a logarithmic axis, so that a model with KL 0, or none, has no place.
#pragma once

#include <string>
#include <vector>

namespace quern {

struct PlotPoint {
  std::string name;
  double bytes = 0, kl = 0;
  bool is_best = false;
};

struct PlotSize {
  int columns = 80, rows = 20;  // of the whole plot, legend apart; at least 40 x 6
};

// Lines that end in newlines, none longer than the columns. ASCII unless names are not.
std::string pareto_plot(const std::vector<PlotPoint>& points, PlotSize size);

}  // namespace quern
