// SPDX-License-Identifier: Apache-2.0
// cvxq: a scalar quantizer whose bits differ from group to group, by reverse water-filling.
//
// Definition. A group is one column of a cluster of rows, and has a depth of 0 to 8 bits, a centre
// and a scale:
//     w_hat = centre + scale * level(depth, code),   level(0) = 0,
// with levels of unit variance from level_tables.h: CVXQ's compander or Lloyd-Max. The code is that
// of the nearest level. Rows form clusters of like variance: n_out / group of equal size.
//
// Depths. With h the importance of a group, that of its column times the mean of its rows', and s2
// its variance, b bits leave the error h s2 D(b) of a weight, D the error of the levels on a unit
// Gaussian. Bits go one by one where an error falls most, h s2 (D(b) - D(b + 1)), until `bits` per
// weight are spent. D is convex, so that this is the allocation of least error; with D = 4^-b, the
// theory of high rates, it is CVXQ's b = log2(h s2 / V) / 2, rounded, at the dual variable V that
// spends as much.
//
// Layout. codes: U8 [n_out * ceil(bits * n_in / 8)], rows in order, of each the codes of its
// columns, lowest bits first, up to a whole byte; what is left over is zero. lengths: U32
// [clusters], the bytes of each of its rows. depths: U8 [clusters, ceil(n_in / 2)], of even columns
// the low nibble. centres, scales: F16 [clusters, n_in]. clusters, if there are several: U8, or U16
// of more than 256, [n_out], the cluster of each row.
// Bits: `bits` + 36 / group, and 8 or 16 / n_in if there are several clusters.
// Reference: CVXQ (arXiv 2409.02026).
#include "codecs/cvxq.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/float_types.h"
#include "base/parallel.h"
#include "codecs/bit_stream.h"
#include "codecs/claims.h"
#include "codecs/scalar_table.h"

namespace quern {
namespace {

using spec::ParamKind;

constexpr spec::ParamSpec kParams[] = {
    {"bits", ParamKind::kNumber, "", 0.125, 8, {}, "bits of a code, on average"},
    {"group", ParamKind::kInt, "512", 16, 1 << 20, {}, "rows of a cluster"},
    {"levels", ParamKind::kChoice, "laplace", 0, 0, "laplace|lloyd", "where the levels lie"},
};

constexpr std::string_view kIntegrals = "integrals over the cells";
constexpr ClaimRow kClaims[] = {
    {"cvxq(2)", 0.12747, kIntegrals},
    {"cvxq(3)", 0.04661, kIntegrals},
    {"cvxq(4)", 0.01287, kIntegrals},
    {"cvxq(2.5)", 0.08704, kIntegrals},
    {"cvxq(2, levels=lloyd)", 0.1175, "Max 1960, table I"},
    {"cvxq(3, levels=lloyd)", 0.03454, "Max 1960, table I"},
};

constexpr std::string_view kExamples[] = {
    "cvxq(2)",
    "cvxq(3)",
    "cvxq(4)",
    "cvxq(0.5, group=16)",
    "cvxq(2.5)",
    "cvxq(8, group=64)",
    "cvxq(2, levels=lloyd)",
    "cvxq(3, levels=lloyd)",
    "cvxq(3.1, group=32, levels=lloyd)",
};

constexpr float kMostHalf = 65504;
float as_half(double x) {
  return f16_to_float(float_to_f16(std::clamp(static_cast<float>(x), -kMostHalf, kMostHalf)));
}

class CvxqCodec final : public Codec {
 public:
  explicit CvxqCodec(const spec::Params& params)
      : spec_(print(params.canonical())),
        bits_(params.number("bits")),
        group_(params.integer("group")),
        levels_(cvxq_levels(params.word("levels") == "lloyd")) {}

  std::string spec() const override { return spec_; }
  Claim claim() const override { return find_claim(kClaims, spec_, bits_); }
  int64_t block_cols() const override { return 1; }
  int64_t block_rows() const override { return 16; }
  int64_t group_cols(int64_t n_in) const override { return n_in; }
  bool weighs_columns() const override { return true; }
  bool decides_late() const override {
    return true;
  }  // where a code goes follows from those before

  Result<std::vector<PlaneSpec>> planes(int64_t n_out, int64_t n_in) const override {
    const auto weights = checked_mul<int64_t>(n_out, n_in);
    if (!weights || *weights > std::numeric_limits<int64_t>::max() / 64 ||
        n_in > std::numeric_limits<int32_t>::max() / kCvxqMostDepth) {
      return error("cvxq: a matrix of {} x {} is too large", n_out, n_in);
    }
    const int64_t n = n_clusters(n_out);
    if (n > kMostClusters) {
      return error("cvxq: {} rows in clusters of {}: at most {} clusters", n_out, group_,
                   kMostClusters);
    }
    std::vector<PlaneSpec> planes = {{"codes", DType::kU8, {n_out * budget(n_in)}},
                                     {"lengths", DType::kU32, {n}},
                                     {"depths", DType::kU8, {n, ceil_div<int64_t>(n_in, 2)}},
                                     {"centres", DType::kF16, {n, n_in}},
                                     {"scales", DType::kF16, {n, n_in}}};
    if (n > 1) planes.push_back({"clusters", n > 256 ? DType::kU16 : DType::kU8, {n_out}});
    return planes;
  }

  void fit_matrix(const MatrixSource& source, const MutableCodes& codes) const override;
  void fit(MatrixView<const float>, std::span<const float>, int64_t, int64_t,
           const MutableCodes&) const override {}
  void encode(MatrixView<const float> w, int64_t row, int64_t col, const MutableCodes& codes,
              MatrixView<float> w_hat) const override;
  std::unique_ptr<ColumnCoder> column_coder(int64_t row, int64_t n_rows,
                                            const MutableCodes& codes) const override;
  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override;
  std::shared_ptr<const RuntimeForm> runtime_form(const CodesView& codes,
                                                  Reading reading) const override;
  void copy_rows(std::span<const PlaneSpec> specs, const MutableCodes& from, int64_t row,
                 int64_t n_rows, const MutableCodes& to) const override;

 private:
  static constexpr int64_t kMostClusters = 1 << 16;

  CvxqSize size(int64_t n_out, int64_t n_in) const {
    return {n_clusters(n_out), n_out * budget(n_in)};
  }
  int64_t n_clusters(int64_t n_out) const { return std::max<int64_t>(1, n_out / group_); }
  // Bytes of a row on average.
  int64_t budget(int64_t n_in) const {
    return static_cast<int64_t>(std::ceil(bits_ * static_cast<double>(n_in) / 8));
  }
  std::vector<std::vector<int64_t>> make_clusters(const MatrixSource& source,
                                                  const MutableCodes& codes) const;
  void spend(const std::vector<std::vector<int64_t>>& clusters, const Matrix<double>& weights,
             const MutableCodes& codes) const;
  void fit_group(std::vector<float>& w, double feedback, int64_t cluster, int64_t col,
                 const MutableCodes& codes) const;
  std::string spec_;
  double bits_;
  int64_t group_;
  const CvxqLevels& levels_;

  friend class CvxqColumnCoder;
};

void put_depth(const MutableCodes& codes, int64_t cluster, int64_t col, int depth) {
  std::byte& pair =
      codes.planes[CvxqRows::kDepths][cluster * ceil_div<int64_t>(codes.n_in, 2) + col / 2];
  const auto nibble = static_cast<std::byte>(col % 2 == 0 ? depth : depth << 4);
  pair = (pair & static_cast<std::byte>(col % 2 == 0 ? 0xf0 : 0x0f)) | nibble;
}

// Rows of like variance times importance together.
std::vector<std::vector<int64_t>> CvxqCodec::make_clusters(const MatrixSource& source,
                                                           const MutableCodes& codes) const {
  const MatrixView<const float> w = source.w;
  std::vector<double> energy(static_cast<size_t>(w.rows));
  for (int64_t i = 0; i < w.rows; ++i) {
    double& sum = energy[static_cast<size_t>(i)];
    for (int64_t j = 0; j < w.cols; ++j) sum += static_cast<double>(w(i, j)) * w(i, j);
    if (!source.row_weight.empty()) sum *= source.row_weight[static_cast<size_t>(i)];
  }
  std::vector<int64_t> order(static_cast<size_t>(w.rows));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return energy[static_cast<size_t>(a)] < energy[static_cast<size_t>(b)];
  });
  const int64_t n = n_clusters(w.rows);
  std::vector<std::vector<int64_t>> clusters(static_cast<size_t>(n));
  for (int64_t c = 0; c < n; ++c) {
    std::vector<int64_t>& rows = clusters[static_cast<size_t>(c)];
    rows.assign(order.begin() + c * w.rows / n, order.begin() + (c + 1) * w.rows / n);
    if (n == 1) continue;
    const auto index = static_cast<uint16_t>(c);
    for (const int64_t row : rows) {
      std::memcpy(codes.planes[CvxqRows::kClusters] + row * (n > 256 ? 2 : 1), &index,
                  n > 256 ? 2 : 1);
    }
  }
  return clusters;
}

// Writes depths and lengths. `weights` [clusters, n_in]: what an error of 1 in a unit Gaussian
// costs in each group, per weight.
void CvxqCodec::spend(const std::vector<std::vector<int64_t>>& clusters,
                      const Matrix<double>& weights, const MutableCodes& codes) const {
  struct Step {
    double gain;
    int64_t cluster, col;
    int depth;  // to one more than this
  };
  std::vector<Step> steps;
  for (int64_t c = 0; c < weights.rows(); ++c) {
    for (int64_t j = 0; j < weights.cols(); ++j) {
      put_depth(codes, c, j, 0);
      for (int depth = 0; depth < kCvxqMostDepth && weights(c, j) > 0; ++depth) {
        steps.push_back({weights(c, j) * levels_.gain(depth), c, j, depth});
      }
    }
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.gain > b.gain; });
  int64_t left = codes.n_out * budget(codes.n_in);  // bytes
  std::vector<int64_t> bits(clusters.size());
  for (const Step& step : steps) {
    int64_t& of_row = bits[static_cast<size_t>(step.cluster)];
    const auto n_rows = static_cast<int64_t>(clusters[static_cast<size_t>(step.cluster)].size());
    const int64_t price = of_row % 8 == 0 ? n_rows : 0;  // a row's last byte may have room
    // A group that missed a step must not take a later one.
    if (price > left || CvxqRows::depth_at(codes, step.cluster, step.col) != step.depth) continue;
    put_depth(codes, step.cluster, step.col, step.depth + 1);
    ++of_row;
    left -= price;
  }
  for (size_t c = 0; c < clusters.size(); ++c) {
    const auto length = static_cast<uint32_t>(ceil_div<int64_t>(bits[c], 8));
    std::memcpy(codes.planes[CvxqRows::kLengths] + 4 * c, &length, 4);
  }
}

float median(std::vector<float>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double variance_about(float centre, const std::vector<float>& values) {
  double sum = 0;
  for (const float x : values) sum += std::pow(static_cast<double>(x) - centre, 2);
  return sum / static_cast<double>(values.size());
}

// Chooses centre and scale of a group: from its median and deviation the scale of least error,
// then the centre.
void CvxqCodec::fit_group(std::vector<float>& w, double feedback, int64_t cluster, int64_t col,
                          const MutableCodes& codes) const {
  const int depth = CvxqRows::depth_at(codes, cluster, col);
  float centre = as_half(median(w)), scale = 0;
  if (depth > 0) {
    const ScalarTable& table = levels_.table(depth);
    const double sigma = std::sqrt(variance_about(centre, w));
    std::vector<float> u(w.size());
    double least = INFINITY;
    const auto attempt = [&](float to_centre, float to_scale) {
      std::transform(w.begin(), w.end(), u.begin(), [&](float x) { return x - to_centre; });
      const auto n = static_cast<int64_t>(u.size());
      const double loss = table_error(table, {u.data(), nullptr, n, to_scale});
      if (!(loss < least)) return;
      least = loss;
      centre = to_centre;
      scale = to_scale;
    };
    const float middle = centre;
    for (int i = -kCvxqSearchSteps; i <= kCvxqSearchSteps; ++i) {
      attempt(middle, as_half(sigma * std::exp2(i * kCvxqSearchStep)));
    }
    const float best_scale = scale;
    for (int i = -kCvxqSearchSteps; i <= kCvxqSearchSteps; ++i) {
      attempt(as_half(middle + static_cast<double>(best_scale) * i * kCvxqSearchStep), best_scale);
    }
    scale = as_half(scale * std::sqrt(1 + feedback * levels_.error(depth)));
  }
  put_half(codes.planes[CvxqRows::kCentres], cluster * codes.n_in + col, centre);
  put_half(codes.planes[CvxqRows::kScales], cluster * codes.n_in + col, scale);
}

void CvxqCodec::fit_matrix(const MatrixSource& source, const MutableCodes& codes) const {
  constexpr int64_t kColumns = 16;
  const MatrixView<const float> w = source.w;
  const std::vector<std::vector<int64_t>> clusters = make_clusters(source, codes);
  const auto n_clusters = static_cast<int64_t>(clusters.size());
  const auto group = [&](int64_t c, int64_t j, std::vector<float>& values) {
    values.clear();
    for (const int64_t row : clusters[static_cast<size_t>(c)]) values.push_back(w(row, j));
  };
  std::vector<double> of_rows(clusters.size());  // mean importance of a cluster's rows
  for (size_t c = 0; c < clusters.size() && !source.row_weight.empty(); ++c) {
    for (const int64_t row : clusters[c]) {
      of_rows[c] += static_cast<double>(source.row_weight[static_cast<size_t>(row)]) /
                    static_cast<double>(clusters[c].size());
    }
  }
  Matrix<double> weights(n_clusters, w.cols);
  const auto for_groups = [&](const std::function<void(int64_t, int64_t, std::vector<float>&)>& f) {
    parallel_for(w.cols, kColumns, [&](int64_t begin, int64_t end) {
      std::vector<float> values;
      for (int64_t c = 0; c < n_clusters; ++c) {
        for (int64_t j = begin; j < end; ++j) {
          group(c, j, values);
          f(c, j, values);
        }
      }
    });
  };
  for_groups([&](int64_t c, int64_t j, std::vector<float>& values) {
    double h = source.weight.empty() ? 1 : source.weight[static_cast<size_t>(j)];
    if (!source.row_weight.empty()) h *= of_rows[static_cast<size_t>(c)];
    weights(c, j) = h * variance_about(as_half(median(values)), values);
  });
  spend(clusters, weights, codes);
  for_groups([&](int64_t c, int64_t j, std::vector<float>& values) {
    fit_group(values, source.feedback, c, j, codes);
  });
}

// Codes the columns of some rows from left to right.
class CvxqColumnCoder final : public ColumnCoder {
 public:
  CvxqColumnCoder(const CvxqCodec& codec, int64_t row, int64_t n_rows, const MutableCodes& codes)
      : codec_(codec),
        codes_(codes),
        rows_(codec.size(codes.n_out, codes.n_in), codes, row, n_rows),
        error_(static_cast<size_t>(n_rows)) {}

  // Codes x of a row in the column that comes next; returns its value.
  float code(size_t i, float x) {
    const CvxqCluster& cluster = rows_.cluster(i);
    const int depth = cluster.depth[col_];
    if (depth == 0) return cluster.centre[col_];
    const ScalarTable& table = codec_.levels_.table(depth);
    const float u = x - cluster.centre[col_], scale = cluster.scale[col_];
    const unsigned code = table.nearest(scale == 0 ? 0 : u / scale);
    auto* stream = reinterpret_cast<uint8_t*>(codes_.planes[CvxqRows::kCodes]) + rows_.begin(i);
    put_bits(stream, cluster.bit[col_], depth, code);
    return cluster.centre[col_] + scale * table.level(code);
  }
  void next() { ++col_; }

  void push(const Column& column, float* error) override {
    for (size_t i = 0; i < error_.size(); ++i) {
      const float target = column.target[i] + column.coupling * error_[i];
      if (col_ > 0) error[i] = error_[i];
      error_[i] = column.w[i] - code(i, target);
    }
    next();
  }
  void finish(float* error) override { std::copy(error_.begin(), error_.end(), error); }

 private:
  static void put_bits(uint8_t* stream, int64_t bit, int n, unsigned code) {
    const int shift = static_cast<int>(bit % 8);
    const unsigned mask = ((1u << n) - 1u) << shift, field = code << shift;
    for (int64_t byte = bit / 8, k = 0; 8 * k < shift + n; ++byte, ++k) {
      stream[byte] = static_cast<uint8_t>((stream[byte] & ~(mask >> (8 * k))) | (field >> (8 * k)));
    }
  }

  const CvxqCodec& codec_;
  MutableCodes codes_;
  CvxqRows rows_;
  std::vector<float> error_;
  size_t col_ = 0;
};

std::unique_ptr<ColumnCoder> CvxqCodec::column_coder(int64_t row, int64_t n_rows,
                                                     const MutableCodes& codes) const {
  return std::make_unique<CvxqColumnCoder>(*this, row, n_rows, codes);
}

// A group is a whole row: `col` is 0.
void CvxqCodec::encode(MatrixView<const float> w, int64_t row, int64_t /*col*/,
                       const MutableCodes& codes, MatrixView<float> w_hat) const {
  CvxqColumnCoder coder(*this, row, w.rows, codes);
  for (int64_t j = 0; j < w.cols; ++j, coder.next()) {
    for (int64_t i = 0; i < w.rows; ++i) w_hat(i, j) = coder.code(static_cast<size_t>(i), w(i, j));
  }
}

void CvxqCodec::decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const {
  CvxqRows(size(codes.n_out, codes.n_in), codes, row, n_rows)
      .decode(codes, 0, n_rows, levels_, dst);
}

// Rows and clusters found once for a matrix.
class CvxqForm final : public Decoder {
 public:
  CvxqForm(std::string spec, std::vector<PlaneSpec> planes, const CvxqLevels& levels, CvxqRows rows)
      : spec_(std::move(spec)),
        planes_(std::move(planes)),
        levels_(levels),
        rows_(std::move(rows)) {}

  std::string spec() const override { return spec_; }
  Result<std::vector<PlaneSpec>> planes(int64_t, int64_t) const override { return planes_; }
  void decode(const CodesView& codes, int64_t row, int64_t n_rows, float* dst) const override {
    rows_.decode(codes, row, n_rows, levels_, dst);
  }

 private:
  std::string spec_;
  std::vector<PlaneSpec> planes_;
  const CvxqLevels& levels_;
  CvxqRows rows_;
};

std::shared_ptr<const RuntimeForm> CvxqCodec::runtime_form(const CodesView& codes,
                                                           Reading /*reading*/) const {
  auto copy = CodedMatrix::create(*this, codes.n_out, codes.n_in);
  if (!copy) return nullptr;
  auto form = std::make_shared<RuntimeForm>();
  form->codes = std::move(*copy);
  form->decoder =
      std::make_unique<CvxqForm>(spec_, form->codes.specs(), levels_,
                                 CvxqRows(size(codes.n_out, codes.n_in), codes, 0, codes.n_out));
  for (size_t p = 0; p < form->codes.specs().size(); ++p) {
    std::memcpy(form->codes.mutable_view().planes[p], codes.planes[p],
                form->codes.specs()[p].n_bytes());
  }
  return form;
}

// Depths and lengths are alike in both: fit_matrix wrote them.
void CvxqCodec::copy_rows(std::span<const PlaneSpec> /*specs*/, const MutableCodes& from,
                          int64_t row, int64_t n_rows, const MutableCodes& to) const {
  const CvxqRows rows(size(from.n_out, from.n_in), from, row, n_rows);
  for (size_t i = 0; i < static_cast<size_t>(n_rows); ++i) {
    const auto n = static_cast<size_t>(rows.cluster(i).row_bytes);
    std::memcpy(to.planes[CvxqRows::kCodes] + rows.begin(i),
                from.planes[CvxqRows::kCodes] + rows.begin(i), n);
  }
}

}  // namespace

extern const CodecInfo cvxq_codec_info;
const CodecInfo cvxq_codec_info = {
    .id = 22,
    .name = "cvxq",
    .params = kParams,
    .summary = "scalar levels, bits by column and cluster of rows (CVXQ)",
    .make = [](const spec::Params& params) -> Result<std::unique_ptr<Codec>> {
      return std::make_unique<CvxqCodec>(params);
    },
    .examples = kExamples,
};

}  // namespace quern
