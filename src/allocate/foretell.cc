// SPDX-License-Identifier: Apache-2.0
#include "allocate/foretell.h"

#include <algorithm>
#include <cmath>

#include "calib/gradients.h"
#include "recipe/dense_tensors.h"

namespace quern {
namespace {

// 1/2 sum_rc S_rc E_rc^2 for each unit, S the squared gradients per token, E what the probe
// changes.
class Foretelling final : public GradientVisitor {
 public:
  Foretelling(const Prepared& prepared, const std::vector<Unit>& units, const Corpus& corpus,
              const Solver& probe, const GradientOptions& options, Curves& curves)
      : prepared_(prepared),
        units_(units),
        probe_(probe),
        curves_(curves),
        n_tokens_(static_cast<double>(corpus.n_tokens() * options.n_draws)),
        squares_(corpus, options, [this](const WeightId& id, const Matrix<float>& squares) {
          return add(id, squares);
        }) {
    for (const Unit& unit : units_) curves_.units[unit.name].probe_kl = 0;
  }

  void linear(const WeightId& id, MatrixView<const float> x, MatrixView<const float> dy) override {
    if (unit_of(id) != nullptr) squares_.linear(id, x, dy);
  }

  // What a token changes through its row of the embedding; several of one sample add up.
  void embedding(std::span<const Token> ids, MatrixView<const float> dy) override {
    const Unit* unit = unit_of({Role::kEmbed});
    if (unit == nullptr || !status_) return;
    if (embedding_error_.empty()) {
      auto error = error_of({Role::kEmbed});
      if (!error) {
        status_ = tl::unexpected(error.error());
        return;
      }
      embedding_error_ = std::move(*error);
    }
    std::map<Token, std::vector<double>> rows;
    for (size_t t = 0; t < ids.size(); ++t) {
      std::vector<double>& row = rows[ids[t]];
      row.resize(static_cast<size_t>(dy.cols));
      for (size_t j = 0; j < row.size(); ++j) {
        row[j] += dy(static_cast<int64_t>(t), static_cast<int64_t>(j));
      }
    }
    double sum = 0;
    for (const auto& [id, row] : rows) {
      for (size_t j = 0; j < row.size(); ++j) {
        sum += std::pow(row[j] * embedding_error_(id, static_cast<int64_t>(j)), 2);
      }
    }
    curves_.units[unit->name].probe_kl += 0.5 * sum / n_tokens_;
  }

  Status end_layer(int layer) override {
    QUERN_TRY(status_);
    return squares_.end_layer(layer);
  }

 private:
  // A tied head is one matrix with the embedding.
  WeightId stored(const WeightId& id) const {
    const bool is_tied = id.role == Role::kLmHead && prepared_.fused->desc().tied_head;
    return is_tied ? WeightId{Role::kEmbed} : id;
  }

  const Unit* unit_of(const WeightId& id) const {
    for (const Unit& unit : units_) {
      const auto& members = unit.weights;
      if (std::find(members.begin(), members.end(), stored(id)) != members.end()) return &unit;
    }
    return nullptr;
  }

  Result<Matrix<float>> error_of(const WeightId& id) const {
    QUERN_ASSIGN(Matrix<float> w, prepared_.fused->weight(stored(id)));
    QUERN_TRY(check_finite(w, stored(id)));
    QUERN_ASSIGN(CodedMatrix codes, CodedMatrix::create(probe_.codec(), w.rows(), w.cols()));
    const auto solved = probe_.solve({w.view(), {}}, codes);
    if (!solved) return tl::unexpected(in_context(solved.error(), to_string(id)));
    Matrix<float> w_hat(w.rows(), w.cols());
    probe_.codec().decode(codes.view(), 0, w.rows(), w_hat.data());
    for (int64_t i = 0; i < w.rows() * w.cols(); ++i) w.data()[i] -= w_hat.data()[i];
    return w;
  }

  Status add(const WeightId& id, const Matrix<float>& squares) {
    QUERN_ASSIGN(const Matrix<float> error, error_of(id));
    double sum = 0;
    for (int64_t i = 0; i < error.rows() * error.cols(); ++i) {
      sum += static_cast<double>(squares.data()[i]) * error.data()[i] * error.data()[i];
    }
    curves_.units[unit_of(id)->name].probe_kl += 0.5 * sum;
    return {};
  }

  const Prepared& prepared_;
  const std::vector<Unit>& units_;
  const Solver& probe_;
  Curves& curves_;
  double n_tokens_;
  SquaredGradients squares_;
  Matrix<float> embedding_error_;
  Status status_;
};

}  // namespace

Status foretell_probes(const Prepared& prepared, const std::vector<Unit>& units,
                       const Corpus& corpus, const Solver& probe, const MeasureOptions& options,
                       Curves& curves) {
  GradientOptions gradients;
  gradients.proceed = [&](double done) {
    return options.observe({{"event", "progress"}, {"what", "gradients"}, {"done", done}});
  };
  Foretelling visitor(prepared, units, corpus, probe, gradients, curves);
  return visit_gradients(*prepared.fused, corpus, gradients, visitor);
}

}  // namespace quern
