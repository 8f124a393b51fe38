// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/parallel.h"
#include "linalg/decompose.h"
#include "model/fuse_rules.h"
#include "model/weights.h"

namespace quern {
namespace {

// Null where a place keeps the stream as it is.
const Matrix<double>* slice_at(const BasisChange& basis, int place) {
  const Matrix<double>* q = basis.slice(place);
  QUERN_CHECK(q != nullptr ||
              basis.form().widths[static_cast<size_t>(place)] == basis.form().widths.back());
  return q;
}

template <class T>
Matrix<T> transposed(const Matrix<T>& w) {
  Matrix<T> t(w.cols(), w.rows());
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.cols(); ++j) t(j, i) = w(i, j);
  }
  return t;
}

// W Q
template <class T>
Matrix<T> times(Matrix<T> w, const Matrix<double>* q) {
  if (q == nullptr) return w;
  Matrix<double> exact(w.rows(), w.cols());
  std::copy_n(w.data(), w.rows() * w.cols(), exact.data());
  const Matrix<double> sums = product(std::as_const(exact).view(), q->view());
  Matrix<T> rounded(sums.rows(), sums.cols());
  std::transform(sums.data(), sums.data() + sums.rows() * sums.cols(), rounded.data(),
                 [](double value) { return static_cast<T>(value); });
  return rounded;
}

template <class T>
void remove_mean(T* x, int64_t n) {
  const T mean = std::accumulate(x, x + n, T(0)) / static_cast<T>(n);
  for (int64_t j = 0; j < n; ++j) x[j] -= mean;
}

// Rows of v by diagonals over query heads that are alike where they share a KV head.
template <class T>
void scale_heads(const Chain& chain, const AttentionDesc& a, Matrix<T>& w) {
  const int64_t d = a.d_head, per_kv = a.n_heads / a.n_kv_heads;
  std::vector<T> scale(static_cast<size_t>(a.n_heads * d), T(1));
  chain.apply(scale.data(), a.n_heads * d);
  for (int64_t i = 0; i < w.rows(); ++i) {
    const T s = scale[static_cast<size_t>(i / d * per_kv * d + i % d)];
    for (int64_t j = 0; j < w.cols(); ++j) w(i, j) *= s;
  }
}

constexpr int64_t kRowGrain = 16;
constexpr int64_t kColGrain = 16;

// body(column) on every column of w, as consecutive values.
template <class T, class Body>
void for_columns(MatrixView<T> w, const Body& body) {
  parallel_for(w.cols, kColGrain, [&](int64_t begin, int64_t end) {
    const int64_t width = end - begin;
    std::vector<T> columns(static_cast<size_t>(width * w.rows));  // [width, rows]
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        columns[static_cast<size_t>(j * w.rows + i)] = w(i, begin + j);
      }
    }
    for (int64_t j = 0; j < width; ++j) body(columns.data() + j * w.rows);
    for (int64_t i = 0; i < w.rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        w(i, begin + j) = columns[static_cast<size_t>(j * w.rows + i)];
      }
    }
  });
}

}  // namespace

template <class T>
Result<Matrix<T>> Fold<T>::part(const WeightId& id, Part part) const {
  switch (id.role) {
    case Role::kAttnNorm:
    case Role::kMlpNorm:
    case Role::kFinalNorm:
      return norm(id, part);
    case Role::kEmbed:
    case Role::kPosEmbed:
      return embedding(id);
    case Role::kLmHead:
      return head(part);
    case Role::kAttnSkip:
    case Role::kMlpSkip:
      return skip(id);
    default:
      return part == Part::kBias ? bias(id) : weight(id);
  }
}

template <class T>
Result<Matrix<T>> Fold<T>::norm(const WeightId& id, Part part) const {
  QUERN_ASSIGN(Matrix<T> values, load_(id, part));
  const bool is_final = id.role == Role::kFinalNorm;
  const bool is_moved = is_final ? is_head_folded(basis_) : changes_stream(basis_);
  const T offset = part == Part::kWeight ? T(norm_desc(model_, id).gain_offset) : T(0);
  if (is_moved) {
    values = Matrix<T>(1, weight_shape(in_basis(model_, basis_), id)[0]);
    std::fill_n(values.data(), values.cols(), T(1));
  } else {
    for (int64_t j = 0; j < values.cols(); ++j) values(0, j) += offset;
  }
  if (!is_final) {
    const Site site = id.role == Role::kAttnNorm ? Site::kAttnIn : Site::kMlpIn;
    basis_.at(site, id.layer)
        .first(n_folded(basis_, model_, site, id.layer))
        .apply(values.data(), values.cols());
  }
  for (int64_t j = 0; j < values.cols(); ++j) values(0, j) -= offset;
  return values;
}

// Rows are what enters the stream.
template <class T>
Result<Matrix<T>> Fold<T>::embedding(const WeightId& id) const {
  QUERN_ASSIGN(Matrix<T> w, load_(id, Part::kWeight));
  if (basis_.form().ends == Ends::kOnline) return w;
  const Chain& chain = basis_.at(Site::kResidual);
  parallel_for(w.rows(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (basis_.form().is_centred) remove_mean(w.row(i), w.cols());
      chain.apply(w.row(i), w.cols());
    }
  });
  if (basis_.is_sliced()) w = times(w, slice_at(basis_, place_in(0)));
  return w;
}

template <class T>
Result<Matrix<T>> Fold<T>::head(Part part) const {
  const WeightId own{Role::kLmHead}, norm{Role::kFinalNorm};
  const WeightId id = model_.tied_head ? WeightId{Role::kEmbed} : own;
  if (part == Part::kBias) {
    Matrix<T> bias(1, model_.n_vocab);
    if (model_.head_bias) {
      QUERN_ASSIGN(bias, load_(own, Part::kBias));
    }
    if (is_head_folded(basis_)) QUERN_TRY(add_norm_bias(norm, id, bias));
    return bias;
  }
  QUERN_ASSIGN(Matrix<T> w, load_(id, Part::kWeight));
  if (basis_.form().ends == Ends::kTurned) {
    const Chain& chain = basis_.at(Site::kResidual);
    parallel_for(w.rows(), kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) chain.apply_inverse_transpose(w.row(i), w.cols());
    });
    return w;
  }
  if (!is_head_folded(basis_)) return w;
  QUERN_TRY(scale_by_gain(norm, w));
  const Chain& chain = basis_.at(Site::kResidual);
  parallel_for(w.rows(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) chain.apply_inverse_transpose(w.row(i), w.cols());
  });
  return w;
}

// h Q_to of h = x Q_from^T: the matrix [d_to, d_from] is Q_to^T Q_from.
template <class T>
Matrix<T> Fold<T>::skip(const WeightId& id) const {
  const LayerDesc& layer = model_.layers[static_cast<size_t>(id.layer)];
  const bool is_first = id.role == Role::kAttnSkip || layer.parallel;
  const int from = is_first ? place_in(id.layer) : place_mid(id.layer);
  const int to = id.role == Role::kAttnSkip ? place_mid(id.layer) : place_out(id.layer);
  Matrix<double> rows(model_.d_model, model_.d_model);  // of Q_from, then of the transposed matrix
  for (int64_t i = 0; i < rows.rows(); ++i) rows(i, i) = 1;
  rows = times(transposed(times(std::move(rows), slice_at(basis_, from))), slice_at(basis_, to));
  const Matrix<double> exact = transposed(rows);
  Matrix<T> w(exact.rows(), exact.cols());
  std::copy_n(exact.data(), exact.rows() * exact.cols(), w.data());
  return w;
}

template <class T>
Result<Matrix<T>> Fold<T>::weight(const WeightId& id) const {
  QUERN_ASSIGN(Matrix<T> w, load_(id, Part::kWeight));
  const Role norm = norm_before(id.role);
  if (norm != Role::kEmbed && changes_stream(basis_)) {
    QUERN_TRY(scale_by_gain({norm, id.layer}, w));
  }
  read_changed(id, w);
  write_changed(id, w);
  return w;
}

template <class T>
Result<Matrix<T>> Fold<T>::bias(const WeightId& id) const {
  Matrix<T> bias(1, weight_shape(model_, id)[0]);
  if (has_weight(model_, id, Part::kBias)) {
    QUERN_ASSIGN(bias, load_(id, Part::kBias));
  }
  const Role norm = norm_before(id.role);
  if (norm != Role::kEmbed && changes_stream(basis_)) {
    QUERN_TRY(add_norm_bias({norm, id.layer}, id, bias));
  }
  // A bias is a column of what the weight writes.
  Matrix<T> column(bias.cols(), 1);
  std::copy_n(bias.data(), bias.cols(), column.data());
  write_changed(id, column);
  Matrix<T> row(1, column.rows());
  std::copy_n(column.data(), column.rows(), row.data());
  return row;
}

template <class T>
Status Fold<T>::scale_by_gain(const WeightId& norm, Matrix<T>& w) const {
  const NormDesc& desc = norm_desc(model_, norm);
  if (desc.kind == NormKind::kNone) return {};
  QUERN_ASSIGN(const Matrix<T> gain, load_(norm, Part::kWeight));
  const T offset = T(desc.gain_offset);
  for (int64_t i = 0; i < w.rows(); ++i) {
    for (int64_t j = 0; j < w.cols(); ++j) w(i, j) *= gain(0, j) + offset;
  }
  return {};
}

template <class T>
Status Fold<T>::add_norm_bias(const WeightId& norm, const WeightId& id, Matrix<T>& bias) const {
  if (!norm_desc(model_, norm).has_bias) return {};
  QUERN_ASSIGN(const Matrix<T> beta, load_(norm, Part::kBias));
  QUERN_ASSIGN(const Matrix<T> w, load_(id, Part::kWeight));
  for (int64_t i = 0; i < w.rows(); ++i) {
    bias(0, i) += std::inner_product(w.row(i), w.row(i) + w.cols(), beta.data(), T(0));
  }
  return {};
}

template <class T>
void Fold<T>::read_changed(const WeightId& id, Matrix<T>& w) const {
  for (const Site site : sites_read(id.role)) {
    if (site == Site::kResidual && basis_.is_sliced()) {
      const bool is_first = norm_before(id.role) == Role::kAttnNorm ||
                            model_.layers[static_cast<size_t>(id.layer)].parallel;
      w = times(w, slice_at(basis_, is_first ? place_in(id.layer) : place_mid(id.layer)));
    }
    const Chain& chain = basis_.at(site, id.layer);
    if (chain.empty()) continue;
    parallel_for(w.rows(), kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) chain.apply_inverse_transpose(w.row(i), w.cols());
    });
  }
}

template <class T>
void Fold<T>::write_changed(const WeightId& id, Matrix<T>& w) const {
  for (const Site site : sites_written(id.role)) {
    Chain chain = basis_.at(site, id.layer);
    if (site == Site::kHeads || site == Site::kFfn) {
      chain = chain.first(n_folded(basis_, model_, site, id.layer));
    }
    if (site == Site::kResidual && basis_.form().is_centred) {
      for_columns(w.view(), [&](T* column) { remove_mean(column, w.rows()); });
    }
    if (site == Site::kResidual && basis_.is_sliced()) {
      const bool is_mid = id.role == Role::kO && !model_.layers[size_t(id.layer)].parallel;
      const int place = is_mid ? place_mid(id.layer) : place_out(id.layer);
      w = transposed(times(transposed(w), slice_at(basis_, place)));
    }
    if (chain.empty()) continue;
    if (site == Site::kHeads) {  // diagonals, whose groups of heads are alike
      scale_heads(chain, model_.layers[static_cast<size_t>(id.layer)].attention, w);
      continue;
    }
    for_columns(w.view(), [&](T* column) {
      for (const OperatorPtr& op : chain.operators()) {
        // What multiplies up's half of a gated product must leave the other half alone.
        if (id.role == Role::kGate && op->kind() == OperatorKind::kDiagonal) continue;
        op->apply(column, w.rows());
      }
    });
  }
}

template class Fold<float>;
template class Fold<double>;

}  // namespace quern
