// SPDX-License-Identifier: Apache-2.0
#include "report/pareto_plot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <sstream>

namespace quern {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// Row and column of a mark in the field; -1 where it is not.
std::pair<int, int> place(const std::string& plot, char mark) {
  const std::vector<std::string> lines = lines_of(plot);
  for (size_t i = 0; i < lines.size(); ++i) {
    const size_t axis = lines[i].find('|');
    if (axis == std::string::npos) continue;
    const size_t at = lines[i].find(mark, axis);
    if (at != std::string::npos) return {static_cast<int>(i), static_cast<int>(at)};
  }
  return {-1, -1};
}

TEST(ParetoPlot, BetterModelsStandLowerAndFurtherLeft) {
  const std::string plot = pareto_plot(
      {{"large", 8e6, .01, true}, {"beaten", 7e6, .4, false}, {"small", 4e6, .1, true}}, {60, 16});
  const auto [a_row, a_column] = place(plot, 'A');
  const auto [b_row, b_column] = place(plot, 'b');
  const auto [c_row, c_column] = place(plot, 'C');
  EXPECT_GT(a_row, c_row);
  EXPECT_GT(c_row, b_row);
  EXPECT_GT(a_column, b_column);
  EXPECT_GT(b_column, c_column);
  EXPECT_EQ(c_column, 10) << plot;  // the first column of the field
  EXPECT_EQ(a_column, 59) << plot;  // the last
  EXPECT_EQ(place(plot, 'B').first, -1) << "a beaten model has a small letter";
}

TEST(ParetoPlot, LinesFitTheTerminal) {
  for (const int columns : {40, 41, 63, 80, 200}) {
    for (const int rows : {6, 7, 24}) {
      std::vector<PlotPoint> points;
      for (int i = 0; i < 40; ++i) {
        points.push_back({std::string(static_cast<size_t>(i * 9), 'n'), 1e6 * (i + 1),
                          std::pow(10, -i % 7), i % 3 == 0});
      }
      for (const std::string& line : lines_of(pareto_plot(points, {columns, rows}))) {
        EXPECT_LE(line.size(), static_cast<size_t>(columns)) << line;
      }
    }
  }
}

TEST(ParetoPlot, NamesAreCutBetweenCharacters) {
  std::string name;
  for (int i = 0; i < 60; ++i) name += "\xC3\xA9";  // é
  const std::string plot = pareto_plot({{name, 1e6, .1, true}}, {60, 8});
  const std::string line = lines_of(plot).at(8);
  const size_t dots = line.rfind("...");
  ASSERT_NE(dots, std::string::npos) << line;
  EXPECT_EQ(line[dots - 1], '\xA9');
  EXPECT_EQ((dots - line.find('\xC3')) % 2, 0u);
}

TEST(ParetoPlot, WhatHasNoPlaceIsLeftOut) {
  EXPECT_NE(pareto_plot({{"same", 1e6, 0, true}, {"broken", 1e6, NAN, false}}, {}).find("nothing"),
            std::string::npos);
  const std::string plot = pareto_plot(
      {{"same", 9e6, 0, true}, {"inf", 1e6, INFINITY, false}, {"one", 5e6, .2, true}}, {});
  EXPECT_EQ(plot.find("same"), std::string::npos);
  EXPECT_EQ(plot.find("inf"), std::string::npos);
  EXPECT_NE(place(plot, 'A').first, -1) << plot;
}

}  // namespace
}  // namespace quern
