// SPDX-License-Identifier: Apache-2.0
#include "allocate/choose.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace quern {
namespace {

constexpr int kBisections = 100;
constexpr int kMaxMoves = 10000;  // each lowers the cost; this bounds the time only
constexpr int kReach = 4;         // choices up and down that a move of two units considers

const Choice& at(const ChoicesOfUnits& units, size_t unit, int choice) {
  return units[unit][static_cast<size_t>(choice)];
}

// The choice of each unit that minimises cost + lambda bytes; of equals the smaller.
std::vector<int> at_slope(const ChoicesOfUnits& units, double lambda) {
  std::vector<int> chosen(units.size(), 0);
  for (size_t u = 0; u < units.size(); ++u) {
    double least = std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < units[u].size(); ++c) {
      const Choice& choice = units[u][c];
      const double value = choice.cost + lambda * static_cast<double>(choice.bytes);
      const Choice& best = at(units, u, chosen[u]);
      if (value < least || (value == least && choice.bytes < best.bytes)) {
        least = value;
        chosen[u] = static_cast<int>(c);
      }
    }
  }
  return chosen;
}

std::vector<int> smallest(const ChoicesOfUnits& units) {
  std::vector<int> chosen(units.size(), 0);
  for (size_t u = 0; u < units.size(); ++u) {
    const auto least =
        std::min_element(units[u].begin(), units[u].end(), [](const Choice& a, const Choice& b) {
          return a.bytes != b.bytes ? a.bytes < b.bytes : a.cost < b.cost;
        });
    chosen[u] = static_cast<int>(least - units[u].begin());
  }
  return chosen;
}

// The greatest size within the budget that some slope gives.
std::vector<int> sweep(const ChoicesOfUnits& units, uint64_t budget) {
  std::vector<int> best = smallest(units);
  double low = 0, high = 1e-30;
  while (high < 1e30 && totals(units, at_slope(units, high)).bytes > budget) high *= 16;
  if (high >= 1e30) return best;
  best = at_slope(units, high);
  for (int i = 0; i < kBisections; ++i) {
    // The slopes that matter span many powers of ten.
    const double middle = low > 0 ? std::sqrt(low * high) : high / 1024;
    if (middle < 1e-40) break;
    std::vector<int> chosen = at_slope(units, middle);
    if (totals(units, chosen).bytes <= budget) {
      best = std::move(chosen);
      high = middle;
    } else {
      low = middle;
    }
  }
  return best;
}

// A unit's change from what is chosen to another choice.
struct Move {
  size_t unit = 0;
  int choice = 0;
  int64_t bytes = 0;  // more than now
  double cost = 0;    // more than now
};

std::vector<Move> moves_of(const ChoicesOfUnits& units, std::span<const int> chosen) {
  std::vector<Move> moves;
  for (size_t u = 0; u < units.size(); ++u) {
    const Choice& now = at(units, u, chosen[u]);
    const int n = static_cast<int>(units[u].size());
    for (int c = std::max(0, chosen[u] - kReach); c <= std::min(n - 1, chosen[u] + kReach); ++c) {
      const Choice& then = at(units, u, c);
      if (c == chosen[u]) continue;
      moves.push_back({u, c, static_cast<int64_t>(then.bytes) - static_cast<int64_t>(now.bytes),
                       then.cost - now.cost});
    }
  }
  return moves;
}

// Does the move of one or two units that lowers the cost most within `left` more bytes.
bool improve(const ChoicesOfUnits& units, uint64_t budget, std::vector<int>& chosen) {
  const auto left = static_cast<int64_t>(budget - totals(units, chosen).bytes);
  std::vector<Move> moves = moves_of(units, chosen);
  std::sort(moves.begin(), moves.end(), [](const Move& a, const Move& b) {
    if (a.bytes != b.bytes) return a.bytes < b.bytes;
    return a.unit != b.unit ? a.unit < b.unit : a.choice < b.choice;
  });
  // Two cheapest moves among the first n, of different units: a pair takes the one that is not its
  // own unit's.
  struct Cheapest {
    const Move *first = nullptr, *second = nullptr;
  };
  std::vector<Cheapest> cheapest(moves.size() + 1);
  for (size_t i = 0; i < moves.size(); ++i) {
    Cheapest next = cheapest[i];
    const Move* move = &moves[i];
    if (next.first == nullptr || move->cost < next.first->cost) {
      if (next.first != nullptr && next.first->unit != move->unit) next.second = next.first;
      next.first = move;
    } else if (move->unit != next.first->unit &&
               (next.second == nullptr || move->cost < next.second->cost)) {
      next.second = move;
    }
    cheapest[i + 1] = next;
  }
  const Move *one = nullptr, *other = nullptr;
  double gain = 0;
  for (const Move& move : moves) {
    if (move.bytes <= left && move.cost < gain) {
      gain = move.cost;
      one = &move;
      other = nullptr;
    }
    const int64_t rest = left - move.bytes;
    const auto end = std::upper_bound(moves.begin(), moves.end(), rest,
                                      [](int64_t bytes, const Move& m) { return bytes < m.bytes; });
    const Cheapest& partners = cheapest[static_cast<size_t>(end - moves.begin())];
    for (const Move* partner : {partners.first, partners.second}) {
      if (partner == nullptr || partner->unit == move.unit) continue;
      if (move.cost + partner->cost < gain) {
        gain = move.cost + partner->cost;
        one = &move;
        other = partner;
      }
      break;
    }
  }
  if (one == nullptr) return false;
  chosen[one->unit] = one->choice;
  if (other != nullptr) chosen[other->unit] = other->choice;
  return true;
}

}  // namespace

Totals totals(const ChoicesOfUnits& units, std::span<const int> chosen) {
  Totals sum;
  for (size_t u = 0; u < units.size(); ++u) {
    sum.bytes += at(units, u, chosen[u]).bytes;
    sum.cost += at(units, u, chosen[u]).cost;
  }
  return sum;
}

Result<std::vector<int>> choose(const ChoicesOfUnits& units, uint64_t budget,
                                const std::vector<std::vector<int>>& starts) {
  for (const auto& choices : units) QUERN_CHECK(!choices.empty());
  const uint64_t least = totals(units, smallest(units)).bytes;
  if (least > budget) {
    return usage_error("{} bytes are too few: the smallest choice for every matrix takes {}",
                       budget, least);
  }
  std::vector<int> best = sweep(units, budget);
  for (const std::vector<int>& start : starts) {
    const Totals sum = totals(units, start);
    if (sum.bytes <= budget && sum.cost < totals(units, best).cost) best = start;
  }
  for (int i = 0; i < kMaxMoves && improve(units, budget, best); ++i) {
  }
  return best;
}

}  // namespace quern
