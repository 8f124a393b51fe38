// SPDX-License-Identifier: Apache-2.0
// Paley: R. E. A. C. Paley, On orthogonal matrices (1933). Q[i][j] = chi(i - j), the Legendre
// symbol; Paley I is S + I with S = [[0, 1], [-1, Q]], not symmetric; Paley II is
// C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]] with C = [[0, 1], [1, Q]], symmetric.
// Williamson: four symmetric circulants A B C D of order m with A^2 + B^2 + C^2 + D^2 = 4 m I in
// the array below; the rows are found by search and checked by the tests.
#include "kernels/hadamard_matrices.h"

namespace quern {
namespace {

using Signs = std::vector<int8_t>;

constexpr std::string_view kDouble = "double-";

struct Williamson {
  int64_t m;
  std::string_view rows[4];
};

constexpr Williamson kWilliamson[] = {
    {13, {"++++-+--+-+++", "+-++------++-", "+-+---++---+-", "+--++----++--"}},
    {23,
     {"+-++++-+++----+++-++++-", "+-+-++----+--+----++-+-", "+--++-+--++++++--+-++--",
      "++++-+---++--++---+-+++"}},
    {25,
     {"+++-++++--+----+--++++-++", "++-++-+-+++----+++-+-++-+", "+--++++++---++---++++++--",
      "++-+-+-++-++--++-++-+-+-+"}},
    {29,
     {"+-+++++-+++-+----+-+++-+++++-", "+++-+-++---+-++++-+---++-+-++",
      "++--++--+-++------++-+--++--+", "+++--++-+-++------++-+-++--++"}},
    {39,
     {"+++--+-+-----+--++----++--+-----+-+--++", "++++---+--++----+-+--+-+----++--+---+++",
      "+++--++-+---+-+--+----+--+-+---+-++--++", "+---++-+-+-----+++-++-+++-----+-+-++---"}},
    {43,
     {"+---++--++++-+-+++-++--++-+++-+-++++--++---", "++-++++++----+-+--++-++-++--+-+----++++++-+",
      "+++-+-++--+-+-++++-+----+-++++-+-+--++-+-++",
      "++---++++-+--+--++--------++--+--+-++++---+"}},
};

bool is_prime(int64_t q) {
  if (q < 2) return false;
  for (int64_t d = 2; d * d <= q; ++d) {
    if (q % d == 0) return false;
  }
  return true;
}

// The bordered matrix of order q + 1: zero diagonal corner, ones right of it, `border` below it,
// chi(i - j) inside.
Signs conference_matrix(int64_t q, int8_t border) {
  std::vector<int8_t> chi(static_cast<size_t>(q), -1);
  chi[0] = 0;
  for (int64_t x = 1; x < q; ++x) chi[static_cast<size_t>(x * x % q)] = 1;
  const int64_t n = q + 1;
  Signs c(static_cast<size_t>(n * n), 0);
  for (int64_t j = 1; j < n; ++j) {
    c[static_cast<size_t>(j)] = 1;
    c[static_cast<size_t>(j * n)] = border;
    for (int64_t i = 1; i < n; ++i) {
      c[static_cast<size_t>(i * n + j)] = chi[static_cast<size_t>((i - j + q) % q)];
    }
  }
  return c;
}

Signs paley1(int64_t k) {
  Signs h = conference_matrix(k - 1, -1);
  for (int64_t i = 0; i < k; ++i) h[static_cast<size_t>(i * k + i)] += 1;
  return h;
}

Signs paley2(int64_t k) {
  const int64_t half = k / 2;
  const Signs c = conference_matrix(half - 1, 1);
  constexpr int8_t kOff[2][2] = {{1, 1}, {1, -1}}, kDiagonal[2][2] = {{1, -1}, {-1, -1}};
  Signs h(static_cast<size_t>(k * k));
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const int8_t entry = c[static_cast<size_t>(i / 2 * half + j / 2)];
      const auto off = static_cast<int8_t>(entry * kOff[i % 2][j % 2]);
      h[static_cast<size_t>(i * k + j)] = i / 2 == j / 2 ? kDiagonal[i % 2][j % 2] : off;
    }
  }
  return h;
}

const Williamson* find_williamson(int64_t k) {
  for (const Williamson& entry : kWilliamson) {
    if (4 * entry.m == k) return &entry;
  }
  return nullptr;
}

Signs williamson(const Williamson& entry) {
  constexpr int kBlock[4][4] = {{0, 1, 2, 3}, {1, 0, 3, 2}, {2, 3, 0, 1}, {3, 2, 1, 0}};
  constexpr int kSign[4][4] = {{1, 1, 1, 1}, {-1, 1, -1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}};
  const int64_t m = entry.m, k = 4 * m;
  Signs h(static_cast<size_t>(k * k));
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const std::string_view row = entry.rows[kBlock[i / m][j / m]];
      const int entry_sign = row[static_cast<size_t>((j % m - i % m + m) % m)] == '+' ? 1 : -1;
      h[static_cast<size_t>(i * k + j)] = static_cast<int8_t>(kSign[i / m][j / m] * entry_sign);
    }
  }
  return h;
}

Signs doubled(const Signs& half, int64_t k) {
  const int64_t n = k / 2;
  Signs h(static_cast<size_t>(k * k));
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const int8_t entry = half[static_cast<size_t>(i % n * n + j % n)];
      h[static_cast<size_t>(i * k + j)] = i >= n && j >= n ? static_cast<int8_t>(-entry) : entry;
    }
  }
  return h;
}

bool gives_order(std::string_view construction, int64_t k) {
  if (construction == "sylvester") return k == 1;
  if (k % 4 != 0) return false;
  if (construction == "paley1") return is_prime(k - 1);  // k - 1 = 3 mod 4
  if (construction == "paley2") return k % 8 == 4 && is_prime(k / 2 - 1);
  return construction == "williamson" && find_williamson(k) != nullptr;
}

}  // namespace

std::optional<Signs> hadamard_matrix(int64_t k, std::string_view construction) {
  if (k < 1) return std::nullopt;
  if (construction.starts_with(kDouble)) {
    if (k % 2 != 0) return std::nullopt;
    const auto half = hadamard_matrix(k / 2, construction.substr(kDouble.size()));
    if (!half) return std::nullopt;
    return doubled(*half, k);
  }
  if (!gives_order(construction, k)) return std::nullopt;
  if (construction == "paley1") return paley1(k);
  if (construction == "paley2") return paley2(k);
  if (construction == "williamson") return williamson(*find_williamson(k));
  return Signs{1};
}

std::optional<std::string> hadamard_construction(int64_t k) {
  for (std::string_view construction : {"sylvester", "paley1", "paley2", "williamson"}) {
    if (gives_order(construction, k)) return std::string(construction);
  }
  return std::nullopt;
}

}  // namespace quern
