// SPDX-License-Identifier: Apache-2.0
// beam: ldlq that keeps several codings of a row instead of one (K-best sphere decoding, the M
// algorithm), for codecs that list the values a weight may take.
//
// Definition. With H = M D M^T as in ldlq, tr(E H E^T) = sum_j D_j |eta_j|^2, and eta_j, the
// distance of w_hat_j from its target w_j + sum_{i<j} E_i M_ij, depends on columns up to j alone. A
// coding of the first j columns of a row therefore has a cost that later ones only add to. From
// each of the `width` codings kept, column j is coded to the nearest value and to those next to it;
// of all these the `width` of least cost are kept. Width 1 is ldlq, code for code; a width of all
// codings finds the best one.
//
// Side info that is fitted on the way (groups=dynamic) is fitted to the best coding so far and
// shared by all. Codes are written at the end, since a codec returns a value that it listed.
//
// Cost: `width` times that of ldlq, and a sort of at most width^2 codings for each weight.
// References: Babai's nearest plane is ldlq (arXiv 2507.18553); K-best: Guo and Nilsson, IEEE JSAC
// 24(3), 2006.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kernels.h"
#include "solvers/feedback.h"

namespace quern {
namespace {

constexpr spec::ParamSpec kParams[] = {
    kFeedbackCodec,
    {"width", spec::ParamKind::kInt, "8", 1, 256, {}, "codings of a row that are kept"},
    kFeedbackOrder,
    kFeedbackDamping,
    kFeedbackGroups,
    kFeedbackDrift,
};

constexpr int64_t kColBlock = 64;  // as in ldlq, whose sums are cut there

// A coding of the columns so far, in detail within the present block of columns.
struct Path {
  double cost = 0;
  int64_t ancestor = 0;     // the path before the block that it comes from
  float target[kColBlock];  // with the feedback of what is coded
  float value[kColBlock], error[kColBlock];
};

// One row's paths by rising cost.
using Paths = std::vector<Path>;

struct Option {
  double cost;
  size_t path;
  float value;
};

// A tile while it is coded. Paths before the block: row r * width + k is path k of row r.
struct Search {
  const FeedbackTile& tile;
  int64_t width;
  std::vector<Paths> rows;
  Matrix<float> values, errors;  // [n * width, n_in]
};

// Keeps the `width` cheapest ways on from the paths, given the codec's choice for each of them.
void choose(const Paths& paths, int64_t j, double importance, std::span<const float> nearest,
            const std::vector<float>& values, size_t width, std::vector<Option>& kept) {
  kept.clear();
  const auto offer = [&](size_t path, float value) {
    const double distance = static_cast<double>(paths[path].target[j]) - value;
    const Option option{paths[path].cost + importance * distance * distance, path, value};
    if (kept.size() == width) {
      if (!(option.cost < kept.back().cost)) return false;
      kept.pop_back();
    }
    kept.insert(std::upper_bound(kept.begin(), kept.end(), option,
                                 [](const Option& a, const Option& b) { return a.cost < b.cost; }),
                option);
    return true;
  };
  for (size_t k = 0; k < paths.size(); ++k) {
    if (!offer(k, nearest[k]) || width == 1) break;
    const float target = paths[k].target[j];
    auto above = std::upper_bound(values.begin(), values.end(), nearest[k]);
    auto below = std::lower_bound(values.begin(), values.end(), nearest[k]);
    while (above != values.end() || below != values.begin()) {
      const bool is_above = below == values.begin() ||
                            (above != values.end() && *above - target < target - *(below - 1));
      if (!offer(k, is_above ? *above++ : *--below)) break;
    }
  }
}

class Beam final : public Solver {
 public:
  Beam(std::string text, std::unique_ptr<Codec> codec, const FeedbackOptions& options,
       int64_t width)
      : spec_(std::move(text)), codec_(std::move(codec)), options_(options), width_(width) {}

  std::string spec() const override { return spec_; }
  const Codec& codec() const override { return *codec_; }
  bool needs_hessian() const override { return true; }
  double drift() const override { return options_.drift; }
  size_t scratch_bytes(int64_t n_out, int64_t n_in) const override {
    const auto paths = static_cast<size_t>(rows_per_piece(*codec_) * width_);
    return feedback_scratch_bytes(options_, n_out, n_in) +
           paths * (4 * static_cast<size_t>(n_in) * sizeof(float) + 2 * sizeof(Path));
  }

  Result<SolveReport> solve(const SolveInput& input, CodedMatrix& out) const override {
    SolveReport report;
    QUERN_ASSIGN(const Feedback feedback, factor_feedback(input, options_, report));
    code_with_feedback(input, *codec_, feedback, out, report,
                       [&](const FeedbackTile& tile) { code_columns(tile); });
    return report;
  }

 private:
  void code_columns(const FeedbackTile& tile) const {
    const int64_t n_in = tile.w.cols;
    if (options_.is_static) fit_static(tile);
    Search search{tile, width_, std::vector<Paths>(static_cast<size_t>(tile.n), Paths(1)),
                  Matrix<float>(tile.n * width_, n_in), Matrix<float>(tile.n * width_, n_in)};
    for (int64_t b = 0; b < n_in; b += kColBlock) {
      const int64_t n = std::min(kColBlock, n_in - b);
      start_block(search, b, n);
      for (int64_t j = 0; j < n; ++j) {
        const int64_t col = tile.feedback.order[static_cast<size_t>(b + j)];
        if (!options_.is_static && col % tile.codec.group_cols(n_in) == 0) {
          for (int64_t r = 0; r < tile.n; ++r) put_errors(search, r, b, j);
          fit_corrected(tile, col);
        }
        code_column(search, b, j, n);
      }
      end_block(search, b, n);
    }
    for (int64_t r = 0; r < tile.n; ++r) put_errors(search, r, n_in, 0);
    if (width_ > 1) put_codes(search);  // else they are written already
  }

  static void start_block(Search& search, int64_t b, int64_t n) {
    const FeedbackTile& tile = search.tile;
    const Matrix<float>& m = tile.feedback.l_transposed;
    Matrix<float> past(search.errors.rows(), n);
    kernels().dot_tile(search.errors.data(), search.errors.cols(), past.rows(), m.row(b), m.cols(),
                       n, b, past.data(), n);
    for (int64_t r = 0; r < tile.n; ++r) {
      Paths& paths = search.rows[static_cast<size_t>(r)];
      for (size_t k = 0; k < paths.size(); ++k) {
        paths[k].ancestor = static_cast<int64_t>(k);
        for (int64_t j = 0; j < n; ++j) {
          const int64_t col = tile.feedback.order[static_cast<size_t>(b + j)];
          paths[k].target[j] =
              tile.w(tile.first + r, col) + past(r * search.width + paths[k].ancestor, j);
        }
      }
    }
  }

  // Column j of the block of n columns that starts at place b.
  void code_column(Search& search, int64_t b, int64_t j, int64_t n) const {
    const FeedbackTile& tile = search.tile;
    const int64_t col = tile.feedback.order[static_cast<size_t>(b + j)];
    Matrix<float> nearest(tile.n, width_);
    std::vector<float> target(static_cast<size_t>(tile.n)), after(static_cast<size_t>(n));
    size_t most = 0;
    for (const Paths& paths : search.rows) most = std::max(most, paths.size());
    for (size_t k = 0; k < most; ++k) {
      for (size_t r = 0; r < target.size(); ++r) {
        const Paths& paths = search.rows[r];
        target[r] = paths[std::min(k, paths.size() - 1)].target[j];
      }
      tile.codec.encode({target.data(), tile.n, 1, 1}, tile.first, col, tile.codes,
                        nearest.view().col_range(static_cast<int64_t>(k), 1));
    }
    for (int64_t c = j + 1; c < n; ++c) {
      after[static_cast<size_t>(c)] = tile.feedback.l_transposed(b + c, b + j);
    }
    std::vector<float> values;
    std::vector<Option> kept;
    for (int64_t r = 0; r < tile.n; ++r) {
      Paths& paths = search.rows[static_cast<size_t>(r)];
      if (width_ > 1) list_values(tile, r, col, values);
      choose(paths, j, tile.feedback.d[static_cast<size_t>(b + j)], {nearest.row(r), paths.size()},
             values, static_cast<size_t>(width_), kept);
      Paths next;
      next.reserve(kept.size());
      for (const Option& option : kept) {
        Path& path = next.emplace_back(paths[option.path]);
        path.cost = option.cost;
        path.value[j] = option.value;
        path.error[j] = tile.w(tile.first + r, col) - option.value;
        kernels().axpy(path.error[j], after.data() + j + 1, n - j - 1, path.target + j + 1);
      }
      paths = std::move(next);
    }
  }

  static void list_values(const FeedbackTile& tile, int64_t r, int64_t col,
                          std::vector<float>& values) {
    tile.codec.levels(tile.codes, tile.first + r, col, values);
    std::erase_if(values, [](float value) { return !std::isfinite(value); });
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
  }

  // The paths as they are become those before the next block.
  static void end_block(Search& search, int64_t b, int64_t n) {
    Matrix<float> values(search.values.rows(), search.values.cols()), errors(values);
    for (size_t r = 0; r < search.rows.size(); ++r) {
      const int64_t first = static_cast<int64_t>(r) * search.width;
      for (size_t k = 0; k < search.rows[r].size(); ++k) {
        const Path& path = search.rows[r][k];
        const int64_t from = first + path.ancestor, to = first + static_cast<int64_t>(k);
        std::copy_n(search.values.row(from), b, values.row(to));
        std::copy_n(search.errors.row(from), b, errors.row(to));
        std::copy_n(path.value, n, values.row(to) + b);
        std::copy_n(path.error, n, errors.row(to) + b);
      }
    }
    search.values = std::move(values);
    search.errors = std::move(errors);
  }

  // Errors of the best path: those before place b, and j of the block that starts there.
  static void put_errors(const Search& search, int64_t r, int64_t b, int64_t j) {
    const Path& best = search.rows[static_cast<size_t>(r)][0];
    const int64_t before = j > 0 ? best.ancestor : 0;
    float* error = search.tile.error.row(search.tile.first + r);
    std::copy_n(search.errors.row(r * search.width + before), b, error);
    std::copy_n(best.error, j, error + b);
  }

  static void put_codes(const Search& search) {
    const FeedbackTile& tile = search.tile;
    Matrix<float> values(tile.n, 1), w_hat(tile.n, 1);
    for (int64_t place = 0; place < tile.w.cols; ++place) {
      for (int64_t r = 0; r < tile.n; ++r) values(r, 0) = search.values(r * search.width, place);
      tile.codec.encode(values.view(), tile.first, tile.feedback.order[static_cast<size_t>(place)],
                        tile.codes, w_hat.view());
    }
  }

  std::string spec_;
  std::unique_ptr<Codec> codec_;
  FeedbackOptions options_;
  int64_t width_;
};

Result<std::unique_ptr<Solver>> make_beam(const spec::Params& params) {
  QUERN_ASSIGN(auto codec, make_codec(params.call("codec")));
  if (!codec->lists_levels()) {
    return usage_error("beam: {} does not list the values that a weight may take", codec->spec());
  }
  QUERN_ASSIGN(const FeedbackOptions options, read_feedback_options("beam", params, *codec));
  QUERN_ASSIGN(std::string text, params.text_around(codec->spec()));
  return std::make_unique<Beam>(std::move(text), std::move(codec), options,
                                params.integer("width"));
}

}  // namespace

extern const SolverInfo beam_solver_info;
const SolverInfo beam_solver_info = {
    .name = "beam",
    .params = kParams,
    .summary = "as ldlq, keeping the best few codings of each row (K-best)",
    .make = make_beam,
};

}  // namespace quern
