// SPDX-License-Identifier: Apache-2.0
// kashin: each weight as the sum of a level in the standard basis and one in a rotated basis.
//
// Definition. A row is cut into blocks of `block` columns (a power of two; what remains at its end
// into powers of two, falling). Within a block
//     w_hat = u + P v,   P = S H S,
// H the orthonormal Hadamard transform, S seeded signs. Entries of u are +- one of 2^(b-1) halves
// of the row, b = ceil(bits / 2); those of v of 2^(c-1) others, c = floor(bits / 2).
//
// P has to be incoherent with the identity, cheap, and the same everywhere to the bit. Entries of
// H are +-1 / sqrt n, the flattest there can be (those of the papers' DCT reach sqrt(2 / n)), and
// butterflies are sums in a fixed order. Without S rows of the block's Walsh functions would not
// spread. Signs of u and v are as good either way, so S is applied last: w_hat = S (u' + H v').
//
// Levels. u and v by kashin_split, its rest added to u; then Lloyd's levels of either; then,
// unless rounds is 0, both in turn: levels and codes of u for w - P v, those of v for P (w - u).
//
// Codes. Nearest to the split; then `rounds` turns in which u is rounded for w - P v and v for
// P (w - u), with levels that move evenly from Lloyd's of the split to the row's. The papers stop
// at the split (rounds=0), where the errors of u and v add up; in turns either makes up for the
// other's. v, small after the split, grows on the way: with the row's levels from the first turn
// on the search is stuck early. Error of 2, 3, 4 bits, unit Gaussian, blocks of 128:
//     rounds=0                   0.280    0.0501   0.0203
//     4 turns, the row's levels  0.130    0.0348   0.0141
//     16 turns, moving levels    0.112    0.0331   0.0137
//
// Layout. u, v: U8 [n_out, ceil(n_in b / 8)], [n_out, ceil(n_in c / 8)], bit streams; the highest
// bit of a code is the sign. levels: F16 [n_out, 2^(b-1) + 2^(c-1)], of u, then of v, rising.
// Bits: bits + 16 (2^(b-1) + 2^(c-1)) / n_in.
// References: arXiv 2404.09737; arXiv 2609.11687 for vectors, rounds of 2 + 2 steps and row levels.
#include "codecs/kashin.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/checked.h"
#include "base/float_types.h"
#include "base/parallel.h"
#include "base/random.h"
#include "codecs/claims.h"
#include "codecs/codec.h"
#include "codecs/scalar_table.h"
#include "kernels/kernels.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr int64_t kMaxBlock = 4096;
constexpr int64_t kMostWeights = int64_t{1} << 48;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kInt, "", 2, 6, {}, "bits of both codes of a weight"},
    {"block", ParamKind::kInt, "64", 8, kMaxBlock, {}, "columns that P mixes, a power of two"},
    {"rounds", ParamKind::kInt, "16", 0, 1000, {}, "turns of the search; 0: none, as published"},
    {"seed", ParamKind::kInt, "0", 0, 1e9, {}, "of the signs"},
};

constexpr std::string_view kMonteCarlo = "a million draws";
constexpr ClaimRow kClaims[] = {
    {"kashin(2)", 0.1155, kMonteCarlo},
    {"kashin(3)", 0.0349, kMonteCarlo},
    {"kashin(4)", 0.0140, kMonteCarlo},
};

constexpr int kSplitRounds = 12;
constexpr int kLloydRounds = 8;
constexpr int kFitRounds = 16;
constexpr int64_t kRowsPerPiece = 8;

// The orthonormal Hadamard transform, in place.
void transform(int log2_n, float* x) {
  kernels().fwht(log2_n, nullptr, static_cast<float>(1 / std::sqrt(std::exp2(log2_n))), x, x);
}

// body(first column, log2 of the width) for blocks and the powers of two at the end.
template <class Body>
void for_pieces(int64_t n, int64_t block, const Body& body) {
  for (int64_t at = 0, width = 0; at < n; at += width) {
    width = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::min(block, n - at))));
    body(at, std::countr_zero(static_cast<uint64_t>(width)));
  }
}

void transform_pieces(int64_t n, int64_t block, float* x) {
  for_pieces(n, block, [&](int64_t at, int log2_n) { transform(log2_n, x + at); });
}

float sum_of_magnitudes(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::abs(x[i]);
  return static_cast<float>(sum);
}

// Moves the mean magnitude of r, with its signs, to u.
void take_signs(int64_t n, float* r, float* u) {
  const float c = sum_of_magnitudes(r, n) / static_cast<float>(n);
  for (int64_t i = 0; i < n; ++i) {
    const float step = r[i] < 0 ? -c : c;
    u[i] += step;
    r[i] -= step;
  }
}

// Magnitudes of one factor's levels, rising.
using Magnitudes = std::vector<float>;

ScalarTable table_of(const Magnitudes& magnitudes) {
  std::vector<float> levels = magnitudes;
  for (const float magnitude : magnitudes) levels.push_back(-magnitude);
  return {std::countr_zero(levels.size()), levels};
}

// One step of Lloyd's.
void move_to_means(const std::vector<float>& x, Magnitudes& magnitudes) {
  std::vector<double> sums(magnitudes.size()), counts(magnitudes.size());
  for (const float value : x) {
    const float magnitude = std::abs(value);
    size_t k = 0;
    while (k + 1 < magnitudes.size() && magnitude > (magnitudes[k] + magnitudes[k + 1]) / 2) ++k;
    sums[k] += magnitude;
    counts[k] += 1;
  }
  for (size_t k = 0; k < magnitudes.size(); ++k) {
    if (counts[k] > 0) magnitudes[k] = static_cast<float>(sums[k] / counts[k]);
  }
}

// From even steps up to twice the mean; one level is the mean itself.
Magnitudes lloyd(const std::vector<float>& x, size_t n_levels) {
  Magnitudes magnitudes(1);
  move_to_means(x, magnitudes);
  if (n_levels == 1) return magnitudes;
  const float step = magnitudes[0] / static_cast<float>(n_levels);
  magnitudes.clear();
  for (size_t k = 0; k < n_levels; ++k) {
    magnitudes.push_back(step * static_cast<float>(2 * k + 1));
  }
  for (int i = 0; i < kLloydRounds; ++i) move_to_means(x, magnitudes);
  return magnitudes;
}

Magnitudes between(const Magnitudes& from, const Magnitudes& to, int64_t step, int64_t n_steps) {
  if (step == n_steps) return to;
  Magnitudes magnitudes = from;
  const float share = static_cast<float>(step) / static_cast<float>(n_steps);
  for (size_t k = 0; k < to.size(); ++k) magnitudes[k] += share * (to[k] - from[k]);
  return magnitudes;
}

// Codes of x and what they stand for.
void round_to(const ScalarTable& table, const float* x, int64_t n, uint8_t* codes, float* value) {
  table_nearest(table, {x, nullptr, n, 1}, codes);
  for (int64_t i = 0; i < n; ++i) value[i] = table.level(codes[i]);
}

// Some whole blocks of one row, signs taken off, and the search over them.
class Search {
 public:
  Search(std::vector<float> x, int64_t block)
      : x_(std::move(x)),
        block_(block),
        target_(x_.size()),
        u_(x_.size()),
        v_(x_.size()),
        u_codes_(x_.size()),
        v_codes_(x_.size()) {
    target_ = x_;
    for_pieces(size(), block_, [&](int64_t at, int log2_n) {
      kashin_split(log2_n, kSplitRounds, kKashinTolerance, target_.data() + at, u_.data() + at,
                   v_.data() + at);
    });
    for (size_t i = 0; i < x_.size(); ++i) u_[i] += target_[i];
  }

  // Of the split, or what codes stand for.
  const std::vector<float>& u() const { return u_; }
  const std::vector<float>& v() const { return v_; }
  const std::vector<uint8_t>& u_codes() const { return u_codes_; }
  const std::vector<uint8_t>& v_codes() const { return v_codes_; }

  void round_both(const ScalarTable& u_table, const ScalarTable& v_table) {
    round_to(u_table, u_.data(), size(), u_codes_.data(), u_.data());
    round_to(v_table, v_.data(), size(), v_codes_.data(), v_.data());
  }

  // What u should be beside the present v, and v beside the present u.
  const std::vector<float>& u_target() {
    target_ = v_;
    transform_all();
    for (size_t i = 0; i < x_.size(); ++i) target_[i] = x_[i] - target_[i];
    return target_;
  }
  const std::vector<float>& v_target() {
    for (size_t i = 0; i < x_.size(); ++i) target_[i] = x_[i] - u_[i];
    transform_all();
    return target_;
  }
  // To the targets just returned.
  void round_u(const ScalarTable& table) {
    round_to(table, target_.data(), size(), u_codes_.data(), u_.data());
  }
  void round_v(const ScalarTable& table) {
    round_to(table, target_.data(), size(), v_codes_.data(), v_.data());
  }

  // The share of |x|^2 that is lost.
  double error() {
    u_target();
    double lost = 0, all = 0;
    for (size_t i = 0; i < x_.size(); ++i) {
      lost += std::pow(static_cast<double>(target_[i]) - u_[i], 2);
      all += std::pow(static_cast<double>(x_[i]), 2);
    }
    return all > 0 ? lost / all : 0;
  }

 private:
  int64_t size() const { return static_cast<int64_t>(x_.size()); }

  void transform_all() { transform_pieces(size(), block_, target_.data()); }

  std::vector<float> x_;
  int64_t block_;
  std::vector<float> target_, u_, v_;
  std::vector<uint8_t> u_codes_, v_codes_;
};

class KashinCodec final : public Codec {
 public:
  explicit KashinCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        u_bits_(static_cast<int>(params.integer("bits") + 1) / 2),
        v_bits_(static_cast<int>(params.integer("bits")) / 2),
        block_(params.integer("block")),
        rounds_(params.integer("rounds")) {
    Random random(static_cast<uint64_t>(params.integer("seed")));
    for (int64_t i = 0; i < block_; ++i) signs_.push_back(static_cast<float>(random.sign()));
  }

  std::string spec() const override { return spec_; }
  Claim claim() const override { return find_claim(kClaims, spec_, u_bits_ + v_bits_); }
  int64_t block_cols() const override { return block_; }
  int64_t group_cols(int64_t n_in) const override { return std::max<int64_t>(1, n_in); }

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    if (checked_mul(n_out, n_in).value_or(kMostWeights + 1) > kMostWeights) {
      return error("{}: a matrix of {} x {} has too many weights", spec_, n_out, n_in);
    }
    return std::vector<PlaneSpec>{{"u", DType::kU8, {n_out, stream_bytes(n_in, u_bits_)}},
                                  {"v", DType::kU8, {n_out, stream_bytes(n_in, v_bits_)}},
                                  {"levels", DType::kF16, {n_out, n_u() + n_v()}}};
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override {
    parallel_for(source.w.rows, kRowsPerPiece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fit_row(source, i, codes);
    });
  }

  void fit(MatrixView<const float>, std::span<const float>, int64_t, int64_t,
           const MutableCodes&) const override {}

  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override {
    for (int64_t i = 0; i < w.rows; ++i) {
      const Magnitudes u = magnitudes_of(codes, row + i, 0, n_u());
      const Magnitudes v = magnitudes_of(codes, row + i, n_u(), n_v());
      Search search(without_signs(w.row(i), w.cols), block_);
      const Magnitudes u_first = rounds_ > 0 ? lloyd(search.u(), u.size()) : u;
      const Magnitudes v_first = rounds_ > 0 ? lloyd(search.v(), v.size()) : v;
      search.round_both(table_of(u_first), table_of(v_first));
      for (int64_t round = 1; round <= rounds_; ++round) {
        search.u_target();
        search.round_u(table_of(between(u_first, u, round, rounds_)));
        search.v_target();
        search.round_v(table_of(between(v_first, v, round, rounds_)));
      }
      auto* u_stream = reinterpret_cast<uint8_t*>(codes.planes[0]) +
                       (row + i) * stream_bytes(codes.n_in, u_bits_);
      auto* v_stream = reinterpret_cast<uint8_t*>(codes.planes[1]) +
                       (row + i) * stream_bytes(codes.n_in, v_bits_);
      for (int64_t j = 0; j < w.cols; ++j) {
        put_code(u_stream, col + j, u_bits_, search.u_codes()[static_cast<size_t>(j)]);
        put_code(v_stream, col + j, v_bits_, search.v_codes()[static_cast<size_t>(j)]);
      }
      std::copy_n(search.u().begin(), w.cols, w_hat.row(i));
      std::vector<float> turned = search.v();
      join(turned, w_hat.row(i));
    }
  }

  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    std::vector<float> turned(static_cast<size_t>(codes.n_in));
    for (int64_t i = row; i < row + n_rows; ++i, dst += codes.n_in) {
      decode_factor(codes, i, 0, dst);
      decode_factor(codes, i, 1, turned.data());
      join(turned, dst);
    }
  }

 private:
  int64_t n_u() const { return int64_t{1} << (u_bits_ - 1); }
  int64_t n_v() const { return int64_t{1} << (v_bits_ - 1); }

  Magnitudes magnitudes_of(const CodesView& codes, int64_t row, int64_t first, int64_t n) const {
    Magnitudes magnitudes;
    for (int64_t k = first; k < first + n; ++k) {
      magnitudes.push_back(half_at(codes.planes[2], row * (n_u() + n_v()) + k));
    }
    return magnitudes;
  }

  std::vector<float> without_signs(const float* w, int64_t n) const {
    std::vector<float> x(w, w + n);
    for (int64_t j = 0; j < n; ++j) {
      x[static_cast<size_t>(j)] *= signs_[static_cast<size_t>(j % block_)];
    }
    return x;
  }

  // u <- S (u + H v). v is overwritten.
  void join(std::vector<float>& v, float* u) const {
    const auto n = static_cast<int64_t>(v.size());
    transform_pieces(n, block_, v.data());
    for (int64_t at = 0; at < n; at += block_) {
      const float* turned = v.data() + at;
      for (int64_t j = 0; j < std::min(block_, n - at); ++j) {
        u[at + j] = signs_[static_cast<size_t>(j)] * (u[at + j] + turned[j]);
      }
    }
  }

  void fit_row(const MatrixSource& source, int64_t row, const MutableCodes& codes) const {
    Search search(without_signs(source.w.row(row), source.w.cols), block_);
    Magnitudes u = lloyd(search.u(), static_cast<size_t>(n_u()));
    Magnitudes v = lloyd(search.v(), static_cast<size_t>(n_v()));
    search.round_both(table_of(u), table_of(v));
    for (int i = 0; rounds_ > 0 && i < kFitRounds; ++i) {
      move_to_means(search.u_target(), u);
      search.round_u(table_of(u));
      move_to_means(search.v_target(), v);
      search.round_v(table_of(v));
    }
    // Fed back errors make what is coded wider by so much.
    const double added = std::min(source.feedback * search.error(), 0.5);
    const auto wider = static_cast<float>(1 / std::sqrt(1 - added));
    std::byte* stored = codes.planes[2] + 2 * row * (n_u() + n_v());
    u.insert(u.end(), v.begin(), v.end());
    for (const float magnitude : u) {
      const uint16_t half = float_to_f16(std::min(magnitude * wider, 65504.0f));
      std::memcpy(stored, &half, 2);
      stored += 2;
    }
  }

  // Levels that the codes of u (0) or v (1) of a row stand for.
  void decode_factor(const CodesView& codes, int64_t row, int factor, float* dst) const {
    const int bits = factor == 0 ? u_bits_ : v_bits_;
    const Magnitudes magnitudes =
        factor == 0 ? magnitudes_of(codes, row, 0, n_u()) : magnitudes_of(codes, row, n_u(), n_v());
    alignas(64) float levels[256] = {};
    for (size_t k = 0; k < magnitudes.size(); ++k) {
      levels[k] = magnitudes[k];
      levels[k + magnitudes.size()] = -magnitudes[k];
    }
    const float one = 1;
    const auto* plane = reinterpret_cast<const uint8_t*>(codes.planes[static_cast<size_t>(factor)]);
    table_decode_row({plane + row * stream_bytes(codes.n_in, bits), nullptr, levels, &one, nullptr,
                      codes.n_in, codes.n_in, bits, 1},
                     dst);
  }

  std::string spec_;
  int u_bits_, v_bits_;
  int64_t block_;
  int64_t rounds_;
  std::vector<float> signs_;  // [block]
};

constexpr std::string_view kExamples[] = {
    "kashin(2)",
    "kashin(3)",
    "kashin(4)",
    "kashin(5, block=128)",
    "kashin(6, block=16, seed=7)",
    "kashin(4, rounds=0)",
};

}  // namespace

void kashin_split(int log2_n, int rounds, float tolerance, float* r, float* u, float* v) {
  const int64_t n = int64_t{1} << log2_n;
  const float rest = tolerance * sum_of_magnitudes(r, n);
  for (int round = 0; round < rounds && sum_of_magnitudes(r, n) > rest; ++round) {
    take_signs(n, r, u);
    take_signs(n, r, u);
    transform(log2_n, r);
    take_signs(n, r, v);
    take_signs(n, r, v);
    transform(log2_n, r);
  }
}

extern const CodecInfo kashin_codec_info;
const CodecInfo kashin_codec_info = {
    .id = 51,
    .name = "kashin",
    .params = kParams,
    .summary = "a level in the standard basis plus one in a rotated basis",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      const int64_t block = params.integer("block");
      if (!std::has_single_bit(static_cast<uint64_t>(block))) {
        return usage_error("kashin: block is {}, expected a power of two from 8 to {}", block,
                           kMaxBlock);
      }
      return std::make_unique<KashinCodec>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
