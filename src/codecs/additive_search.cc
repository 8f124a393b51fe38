// SPDX-License-Identifier: Apache-2.0
// With residual r, the cost of adding point c is r G r^T - 2 (r G . c - c G c^T / 2): what stands
// in brackets, the score, is a sum over rows of coordinates (axpy_rows) that starts from a table of
// offsets. So all points are compared by one kernel whose bits are the same everywhere.
//
// Points are scored by cells of 128. In books of more cells than `probes` only those cells are
// searched whose centers have the highest scores; the fit puts neighbours into one cell. Many
// vectors are coded at once, so that a cell that was fetched serves all that look into it.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>

#include "base/checked.h"
#include "codecs/additive.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

constexpr int64_t kProbes = 32;    // cells that are searched, or a few more
constexpr int64_t kSums = 512;     // partial sums that are extended at once
constexpr int64_t kTogether = 16;  // scored together
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A score that `keep` <= 64 of n scores and not many more reach: so many maxima of lanes do, by
// bisection. If there are few scores, all do.
float score_of_best(const float* scores, int64_t n, int64_t keep) {
  constexpr int64_t kLanes = 64;
  float top[kLanes];
  const int64_t lanes = keep <= 8 ? 16 : kLanes;
  if (n < lanes) return -kInfinity;
  std::copy_n(scores, lanes, top);
  for (int64_t i = lanes; i < n; i += lanes) {
    const int64_t width = std::min(lanes, n - i);
    for (int64_t l = 0; l < width; ++l) top[l] = scores[i + l] > top[l] ? scores[i + l] : top[l];
  }
  float low = *std::min_element(top, top + lanes), high = kernels().max(top, lanes);
  for (int step = 0; step < 12; ++step) {
    const float middle = low + 0.5f * (high - low);
    int32_t reach = 0;
    for (int64_t l = 0; l < lanes; ++l) reach += top[l] >= middle ? 1 : 0;
    (reach >= keep ? low : high) = middle;
    if (reach == keep) break;
  }
  return low;
}

int64_t places_from(float least, const float* scores, int64_t n, uint16_t* places) {
  if (kernels().isa == Isa::kAvx512) return additive_places_avx512(least, scores, n, places);
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    places[found] = static_cast<uint16_t>(i);
    found += scores[i] >= least ? 1 : 0;
  }
  return found;
}

// For each slope of n <= kTogether the scores of the points.
void score(const AdditiveScoring& s, float* scores) {
  for (int64_t i = 0; i < s.n; ++i) std::copy_n(s.offsets, s.n_points, scores + i * s.n_points);
  kernels().axpy_rows(s.slopes, s.dim, s.n, s.points, s.n_points, s.dim, s.n_points, scores,
                      s.n_points);
}

}  // namespace

void additive_best_ref(const AdditiveScoring& s, float* best, int32_t* place) {
  float scores[kTogether * kAdditiveCell];
  score(s, scores);
  for (int64_t i = 0; i < s.n; ++i) {
    const float* row = scores + i * s.n_points;
    const float most = kernels().max(row, s.n_points);
    if (!(most > best[i])) continue;
    best[i] = most;
    place[i] = static_cast<int32_t>(std::find(row, row + s.n_points, most) - row);
  }
}

// What is kept of the extensions of the partial sums of one vector, by rising cost.
class AdditiveSearch::Beam {
 public:
  struct Candidate {
    float cost;
    uint16_t parent, code;
  };
  explicit Beam(int64_t keep) : keep_(keep) {}
  const Candidate* begin() const { return kept_; }
  const Candidate* end() const { return kept_ + n_; }

  // Adding points [first, first + n) of these scores to partial sum `parent` of cost `base`.
  void offer(const float* scores, int64_t n, float base, uint16_t parent, int64_t first) {
    const float least =
        n_ == keep_ ? (base - kept_[n_ - 1].cost) / 2 : score_of_best(scores, n, keep_);
    uint16_t places[kAdditiveCell];
    const int64_t found = places_from(least, scores, n, places);
    for (int64_t i = 0; i < found; ++i) {
      insert({base - 2 * scores[places[i]], parent, static_cast<uint16_t>(first + places[i])});
    }
  }

  void insert(const Candidate& candidate) {
    if (n_ == keep_ && !(candidate.cost < kept_[n_ - 1].cost)) return;
    int64_t place = n_ < keep_ ? n_++ : n_ - 1;
    for (; place > 0 && candidate.cost < kept_[place - 1].cost; --place) {
      kept_[place] = kept_[place - 1];
    }
    kept_[place] = candidate;
  }

 private:
  int64_t keep_, n_ = 0;
  Candidate kept_[kMaxAdditiveBeam];
};

AdditiveBooks::AdditiveBooks(int books, int64_t k, int dim)
    : books(books), k(k), dim(dim), values(static_cast<size_t>(books * k * dim)) {}

AdditiveCells::AdditiveCells(const AdditiveBooks& books)
    : cell(std::min(kAdditiveCell, books.k)),
      cells(books.k / cell),
      points(books.books * cells, books.dim * cell),
      centers(books.books * books.dim, cells) {
  for (int64_t m = 0; m < books.books; ++m) {
    for (int64_t c = 0; c < cells; ++c) {
      float* row = points.row(m * cells + c);
      for (int64_t i = 0; i < cell; ++i) {
        const float* point = books.point(static_cast<int>(m), c * cell + i);
        for (int64_t t = 0; t < books.dim; ++t) row[t * cell + i] = point[t];
      }
      for (int64_t t = 0; t < books.dim; ++t) {
        float sum = 0;
        for (int64_t i = 0; i < cell; ++i) sum += row[t * cell + i];
        centers(m * books.dim + t, c) = sum / static_cast<float>(cell);
      }
    }
  }
}

// A partial sum of a vector of the batch.
struct AdditiveSearch::Sum {
  float rest[kMaxAdditiveDim];
  uint16_t codes[kMaxAdditiveBooks];
  int64_t vector;
};

AdditiveSearch::AdditiveSearch(const AdditiveBooks& books, const AdditiveCells& cells,
                               MatrixView<const float> metric, int beam, int64_t probes)
    : books_(books),
      cells_(cells),
      metric_(books.dim, books.dim),
      offsets_(books.books, books.k),
      center_offsets_(books.books, cells.cells),
      beam_(beam),
      probes_(probes) {
  for (int64_t t = 0; t < metric.rows; ++t) {
    for (int64_t u = 0; u < metric.rows; ++u) metric_(t, u) = metric(t, u);
  }
  for (int m = 0; m < books.books; ++m) {
    for (int64_t c = 0; c < cells.cells; ++c) {
      set_offsets(cells.points.row(m * cells.cells + c), cells.cell,
                  offsets_.row(m) + c * cells.cell);
    }
    if (cells.cells > probes_) {
      set_offsets(cells.centers.row(m * books.dim), cells.cells, center_offsets_.row(m));
    }
  }
}

// -c G c^T / 2 of n points [dim, n].
void AdditiveSearch::set_offsets(const float* points, int64_t n, float* offsets) const {
  const int dim = books_.dim;
  Matrix<float> slopes(dim, n);
  kernels().axpy_rows(metric_.data(), dim, dim, points, n, dim, n, slopes.data(), n);
  for (int t = 0; t < dim; ++t) {
    for (int64_t i = 0; i < n; ++i) offsets[i] -= 0.5f * slopes(t, i) * points[t * n + i];
  }
}

void AdditiveSearch::slope_of(const float* x, float* slope) const {
  const int dim = books_.dim;
  std::fill_n(slope, dim, 0.0f);
  for (int t = 0; t < dim; ++t) {
    for (int u = 0; u < dim; ++u) slope[u] += x[t] * metric_(t, u);
  }
}

float AdditiveSearch::form(const float* x) const {
  float slope[kMaxAdditiveDim], sum = 0;
  slope_of(x, slope);
  for (int t = 0; t < books_.dim; ++t) sum += slope[t] * x[t];
  return std::max(sum, 0.0f);
}

float AdditiveSearch::cost_of(const float* x, const uint16_t* codes) const {
  float rest[kMaxAdditiveDim];
  std::copy_n(x, books_.dim, rest);
  for (int m = 0; m < books_.books; ++m) {
    const float* point = books_.point(m, codes[m]);
    for (int t = 0; t < books_.dim; ++t) rest[t] -= point[t];
  }
  return form(rest);
}

// Which slopes look into which cell.
AdditiveSearch::Lookers AdditiveSearch::choose_cells(int book, const Matrix<float>& slopes) const {
  const int64_t n = slopes.rows(), n_cells = cells_.cells, dim = books_.dim;
  Lookers lookers{{}, std::vector<int64_t>(static_cast<size_t>(n_cells + 1))};
  if (n_cells <= probes_) {
    for (int64_t c = 0; c < n_cells; ++c) {
      for (int64_t i = 0; i < n; ++i) lookers.sums.push_back(static_cast<uint16_t>(i));
      lookers.first[static_cast<size_t>(c + 1)] = n * (c + 1);
    }
    return lookers;
  }
  AlignedVector<float> scores(static_cast<size_t>(kTogether * n_cells));
  std::vector<uint16_t> chosen;     // cells, sum after sum
  std::vector<int64_t> end_of_sum;  // in `chosen`
  for (int64_t first = 0; first < n; first += kTogether) {
    const int64_t count = std::min(kTogether, n - first);
    score({slopes.row(first), count, books_.dim, cells_.centers.row(book * dim),
           center_offsets_.row(book), n_cells},
          scores.data());
    for (int64_t i = 0; i < count; ++i) {
      const float* row = scores.data() + i * n_cells;
      const size_t before = chosen.size();
      chosen.resize(before + static_cast<size_t>(n_cells));
      const int64_t found =
          places_from(score_of_best(row, n_cells, probes_), row, n_cells, chosen.data() + before);
      chosen.resize(before + static_cast<size_t>(found));
      end_of_sum.push_back(static_cast<int64_t>(chosen.size()));
    }
  }
  for (const uint16_t c : chosen) ++lookers.first[c + 1u];
  std::partial_sum(lookers.first.begin(), lookers.first.end(), lookers.first.begin());
  lookers.sums.resize(chosen.size());
  std::vector<int64_t> next(lookers.first);
  size_t at = 0;
  for (size_t i = 0; i < end_of_sum.size(); ++i) {
    for (; at < static_cast<size_t>(end_of_sum[i]); ++at) {
      lookers.sums[static_cast<size_t>(next[chosen[at]]++)] = static_cast<uint16_t>(i);
    }
  }
  return lookers;
}

// Scores the points of each cell for the sums that look into it: `visit` gets a few of these sums.
template <class Visit>
void AdditiveSearch::visit_cells(int book, const Matrix<float>& slopes, const Visit& visit) const {
  const int dim = books_.dim;
  const Lookers lookers = choose_cells(book, slopes);
  float some[kTogether * kMaxAdditiveDim];
  for (int64_t c = 0; c < cells_.cells; ++c) {
    const int64_t end = lookers.first[static_cast<size_t>(c + 1)];
    for (int64_t at = lookers.first[static_cast<size_t>(c)]; at < end; at += kTogether) {
      const uint16_t* which = lookers.sums.data() + at;
      const int64_t n = std::min(kTogether, end - at);
      for (int64_t i = 0; i < n; ++i) std::copy_n(slopes.row(which[i]), dim, some + i * dim);
      visit(AdditiveScoring{some, n, dim, cells_.points.row(book * cells_.cells + c),
                            offsets_.row(book) + c * cells_.cell, cells_.cell},
            which, c * cells_.cell);
    }
  }
}

// Offers the best point of each partial sum to the beam of its vector.
void AdditiveSearch::offer_best(int book, const Matrix<float>& slopes,
                                const std::vector<float>& base, const std::vector<Sum>& sums,
                                std::vector<Beam>& beams) const {
  const auto best_of = kernels().isa == Isa::kAvx512 && cells_.cell % 64 == 0 ? additive_best_avx512
                                                                              : additive_best_ref;
  std::vector<float> best(sums.size(), -kInfinity);
  std::vector<uint16_t> code(sums.size());
  visit_cells(book, slopes, [&](const AdditiveScoring& s, const uint16_t* which, int64_t first) {
    float top[kTogether];
    int32_t place[kTogether];
    for (int64_t i = 0; i < s.n; ++i) top[i] = best[which[i]], place[i] = -1;
    best_of(s, top, place);
    for (int64_t i = 0; i < s.n; ++i) {
      if (place[i] < 0) continue;
      best[which[i]] = top[i];
      code[which[i]] = static_cast<uint16_t>(first + place[i]);
    }
  });
  for (size_t i = 0; i < sums.size(); ++i) {
    beams[static_cast<size_t>(sums[i].vector)].insert(
        {base[i] - 2 * best[i], static_cast<uint16_t>(i), code[i]});
  }
}

// From each partial sum points of the next book, of which the best `keep` of a vector are kept.
void AdditiveSearch::extend(int book, int64_t keep, int64_t n_vectors,
                            std::vector<Sum>& sums) const {
  const int dim = books_.dim;
  const auto n = static_cast<int64_t>(sums.size());
  Matrix<float> slopes(n, dim);
  kernels().axpy_rows(sums[0].rest, sizeof(Sum) / sizeof(float), n, metric_.data(), dim, dim, dim,
                      slopes.data(), dim);
  std::vector<float> base(sums.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    const float* slope = slopes.row(static_cast<int64_t>(i));
    for (int t = 0; t < dim; ++t) base[i] += slope[t] * sums[i].rest[t];
  }
  std::vector<Beam> beams(static_cast<size_t>(n_vectors), Beam(keep));
  if (keep == 1) {
    offer_best(book, slopes, base, sums, beams);
  } else {
    visit_cells(book, slopes, [&](const AdditiveScoring& s, const uint16_t* which, int64_t first) {
      float scores[kTogether * kAdditiveCell];
      score(s, scores);
      for (int64_t i = 0; i < s.n; ++i) {
        const Sum& sum = sums[which[i]];
        beams[static_cast<size_t>(sum.vector)].offer(scores + i * s.n_points, s.n_points,
                                                     base[which[i]], which[i], first);
      }
    });
  }
  std::vector<Sum> next;
  next.reserve(static_cast<size_t>(n_vectors * keep));
  for (const Beam& beam : beams) {
    for (const Beam::Candidate& candidate : beam) {
      Sum& sum = next.emplace_back(sums[candidate.parent]);
      sum.codes[book] = candidate.code;
      const float* point = books_.point(book, candidate.code);
      for (int t = 0; t < dim; ++t) sum.rest[t] -= point[t];
    }
  }
  sums = std::move(next);
}

void AdditiveSearch::code(const float* x, int64_t n, Start start, uint16_t* codes,
                          float* cost) const {
  const int dim = books_.dim, m = books_.books;
  const int64_t batch = m == 1 ? kSums : std::max<int64_t>(1, kSums / beam_);
  for (int64_t first = 0; first < n; first += batch) {
    const int64_t count = std::min(batch, n - first);
    std::vector<Sum> sums(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      Sum& sum = sums[static_cast<size_t>(i)];
      std::copy_n(x + (first + i) * dim, dim, sum.rest);
      sum.vector = i;
    }
    for (int book = 0; book < m; ++book) extend(book, book + 1 == m ? 1 : beam_, count, sums);
    for (int64_t i = 0; i < count; ++i) {
      const float* vector = x + (first + i) * dim;
      const uint16_t* found = sums[static_cast<size_t>(i)].codes;
      float& least = cost[first + i];
      least = cost_of(vector, found);
      uint16_t* kept = codes + (first + i) * m;
      if (start == Start::kKeep) {
        const float before = cost_of(vector, kept);
        if (before <= least) {
          least = before;
          continue;
        }
      }
      std::copy_n(found, m, kept);
    }
  }
}

}  // namespace quern
