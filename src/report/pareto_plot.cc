// SPDX-License-Identifier: Apache-2.0
#include "report/pareto_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace quern {
namespace {

constexpr int kMargin = 10;  // columns before the first of the field: a number, a blank, the axis

struct Axis {
  double low = 0, high = 1;
  int n = 1;
  // Cell of a value; values within [low, high].
  int cell(double value) const {
    const double share = high > low ? (value - low) / (high - low) : 0.5;
    return std::clamp(static_cast<int>(std::lround(share * (n - 1))), 0, n - 1);
  }
  double value(int cell) const { return low + (high - low) * cell / std::max(1, n - 1); }
};

char letter(size_t index, bool is_best) {
  if (index >= 26) return is_best ? '*' : '+';
  return static_cast<char>((is_best ? 'A' : 'a') + index);
}

bool is_drawn(const PlotPoint& point) {
  return std::isfinite(point.kl) && point.kl > 0 && std::isfinite(point.bytes) && point.bytes >= 0;
}

Axis axis_of(const std::vector<double>& values, int n) {
  Axis axis;
  axis.low = *std::min_element(values.begin(), values.end());
  axis.high = *std::max_element(values.begin(), values.end());
  axis.n = n;
  return axis;
}

// At most `n` characters of UTF-8; what is cut off becomes "...".
std::string shortened(const std::string& text, size_t n) {
  size_t count = 0, end = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;  // not a first byte
    if (++count == n - 2) end = i;
  }
  return count <= n ? text : text.substr(0, end) + "...";
}

using Field = std::vector<std::string>;  // rows from the top

void draw(Field& field, int row, int column, char mark) {
  field[field.size() - 1 - static_cast<size_t>(row)][static_cast<size_t>(column)] = mark;
}

// Behind each column the least divergence of what is no larger.
void draw_front(Field& field, const std::vector<PlotPoint>& points, const Axis& x, const Axis& y) {
  for (int column = 0; column < x.n; ++column) {
    double least = INFINITY;
    for (const PlotPoint& point : points) {
      if (is_drawn(point) && x.cell(point.bytes) <= column) least = std::min(least, point.kl);
    }
    if (std::isfinite(least)) draw(field, y.cell(std::log10(least)), column, '.');
  }
}

std::string legend(const std::vector<PlotPoint>& points, size_t columns) {
  std::string text;
  size_t n_drawn = 0;
  for (const PlotPoint& point : points) {
    if (!is_drawn(point)) continue;
    const std::string facts =
        fmt::format("  {} {:9.2f} MB  KL {:<9.3g} ", letter(n_drawn, point.is_best),
                    point.bytes / 1e6, point.kl);
    ++n_drawn;
    text += facts + shortened(point.name, columns - std::min(columns - 4, facts.size())) + "\n";
  }
  return text + "  capitals: nothing beats them in both\n";
}

}  // namespace

std::string pareto_plot(const std::vector<PlotPoint>& points, PlotSize size) {
  size.columns = std::clamp(size.columns, 40, 200);
  size.rows = std::clamp(size.rows, 6, 100);
  std::vector<double> sizes, logs;
  for (const PlotPoint& point : points) {
    if (!is_drawn(point)) continue;
    sizes.push_back(point.bytes);
    logs.push_back(std::log10(point.kl));
  }
  if (sizes.empty()) return "nothing to plot: no model with a KL above zero\n";
  const Axis x = axis_of(sizes, size.columns - kMargin), y = axis_of(logs, size.rows - 3);
  Field field(static_cast<size_t>(y.n), std::string(static_cast<size_t>(x.n), ' '));
  draw_front(field, points, x, y);
  for (const bool best : {false, true}) {  // the best on top
    size_t index = 0;
    for (const PlotPoint& point : points) {
      if (!is_drawn(point)) continue;
      const char mark = letter(index++, point.is_best);
      if (point.is_best == best) {
        draw(field, y.cell(std::log10(point.kl)), x.cell(point.bytes), mark);
      }
    }
  }
  std::string text = fmt::format("{:>{}}\n", "KL", kMargin - 2);
  for (int i = 0; i < y.n; ++i) {
    std::string& line = field[static_cast<size_t>(i)];
    line.erase(line.find_last_not_of(' ') + 1);
    const bool has_number = i % 4 == 0 || i == y.n - 1;
    const std::string number =
        has_number ? fmt::format("{:.3g}", std::pow(10, y.value(y.n - 1 - i))) : "";
    text += fmt::format("{:>{}} |{}\n", number, kMargin - 2, line);
  }
  const std::string right = fmt::format("{:.4g} MB", x.high / 1e6);
  text += fmt::format("{:{}}+{:-<{}}\n", "", kMargin - 1, "", x.n);
  text += fmt::format("{:{}}{:<{}}{}\n", "", kMargin, fmt::format("{:.4g} MB", x.low / 1e6),
                      std::max(0, x.n - static_cast<int>(right.size())), right);
  return text + legend(points, static_cast<size_t>(size.columns));
}

}  // namespace quern
