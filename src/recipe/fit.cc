// SPDX-License-Identifier: Apache-2.0
#include "recipe/fit.h"

#include <cmath>
#include <cstring>

#include "calib/statistics.h"
#include "linalg/cholesky.h"
#include "model/fused_source.h"

namespace quern {
namespace {

// Sum of x^T x and the number of rows.
class Moment {
 public:
  explicit Moment(int64_t n) : sum_(n, n) {}
  void add(MatrixView<const float> x) {
    accumulate_gram(x, sum_.view());
    n_rows_ += x.rows;
  }
  Matrix<double> mean() && {
    mirror_upper(sum_.view());
    for (int64_t i = 0; i < sum_.rows() * sum_.cols(); ++i) {
      sum_.data()[i] /= static_cast<double>(std::max<int64_t>(1, n_rows_));
    }
    return std::move(sum_);
  }

 private:
  Matrix<double> sum_;
  int64_t n_rows_ = 0;
};

class MiddleTap final : public LayerTap {
 public:
  explicit MiddleTap(Moment& moment) : moment_(moment) {}
  bool input(Role, int, MatrixView<const float>) override { return true; }
  bool middle(MatrixView<const float> h) override {
    moment_.add(h);
    return false;
  }

 private:
  Moment& moment_;
};

// Where the statistics of a layer come from; `streams` is null before there are any.
struct ViewSources {
  const ModelFiles& files;
  const BasisChange& basis;  // as it is by now
  const Corpus* corpus;
  const Streams* streams;
  std::function<bool()> proceed;
};

class FusedLayerView final : public LayerView {
 public:
  FusedLayerView(int layer, const ViewSources& sources, const FusedSource& source,
                 std::map<Site, SiteStatistics> statistics)
      : layer_(layer), sources_(sources), source_(source), statistics_(std::move(statistics)) {}
  const ModelDesc& model() const override { return source_.desc(); }
  int layer() const override { return layer_; }
  const SiteStatistics* statistics(Site site) const override {
    const auto found = statistics_.find(site);
    return found == statistics_.end() ? nullptr : &found->second;
  }
  Result<Matrix<float>> weight(Role role, int expert) const override {
    const WeightId id{role, layer_, expert};
    if (!has_weight(model(), id)) return error("{}: the model has no such weight", to_string(id));
    return source_.weight(id);
  }
  Result<Matrix<double>> stream_moment(int place) const override {
    return layer_ < 0 ? moment_of_embedding() : moment_at(place);
  }

 private:
  Result<Matrix<double>> moment_of_embedding() const {
    QUERN_ASSIGN(EndWeights ends, sources_.files.ends());
    ends.is_centred = sources_.basis.form().is_centred;
    Moment moment(model().d_model);
    for (const auto& sample : sources_.corpus->samples) {
      Matrix<float> h(static_cast<int64_t>(sample.size()), model().d_model);
      embed(sources_.files.desc(), ends, sample, 0, h.view());
      moment.add(h.view());
    }
    return std::move(moment).mean();
  }

  // The layer with nothing cut off from there on.
  Result<Matrix<double>> moment_at(int place) const {
    BasisChange wide = sources_.basis;
    for (int p = place; p <= place_out(layer_); ++p) {
      wide.form().widths[static_cast<size_t>(p)] = model().d_model;
      wide.set_slice(p, nullptr);
    }
    const FusedSource source(sources_.files, wide);
    QUERN_ASSIGN(const LayerWeights weights, source.layer(layer_));
    Moment moment(model().d_model);
    const bool is_middle = place == place_mid(layer_);
    MiddleTap tap(moment);
    const bool is_done =
        is_middle ? sources_.streams->observe_source(layer_, weights, tap, sources_.proceed)
                  : sources_.streams->observe_output(
                        layer_, weights, [&](MatrixView<const float> h) { moment.add(h); },
                        sources_.proceed);
    if (!is_done) return cancelled();
    return std::move(moment).mean();
  }

  int layer_;
  const ViewSources& sources_;
  const FusedSource& source_;
  std::map<Site, SiteStatistics> statistics_;
};

std::string slice_name(int place) { return fmt::format("{}slice.{}", kJournalOnly, place); }

}  // namespace

Status Fitting::fit(int layer, const Streams& streams, int64_t n_tokens,
                    const std::function<bool()>& proceed, std::vector<std::string>& notes) {
  for (size_t i = 0; i < recipe_.transforms().size(); ++i) {
    const Transform& transform = *recipe_.transforms()[i];
    if (!transform.is_fitted()) continue;
    const int stage = static_cast<int>(i);
    const BasisChange before = basis_.before_stage(stage);
    const ModelDesc model = in_basis(files_.desc(), before);
    const FusedSource source(files_, before);
    const std::vector<StatisticsNeed> needs = transform.needs(model, layer);
    StatisticsTap tap(needs, n_tokens);
    if (!needs.empty()) {
      QUERN_ASSIGN(const LayerWeights weights, source.layer(layer));
      if (!streams.observe_source(layer, weights, tap, proceed)) return cancelled();
    }
    basis_.begin_stage(stage, BasisChange::Origin::kFitted);
    const ViewSources sources{files_, basis_, nullptr, &streams, proceed};
    const FusedLayerView view(layer, sources, source, tap.take());
    if (auto fitted = transform.fit(view, seed_, basis_, notes); !fitted) {
      return tl::unexpected(in_context(fitted.error(), transform.spec()));
    }
  }
  return check_basis(basis_, in_basis(files_.desc(), basis_));
}

Status Fitting::fit_start(const Corpus& corpus, std::vector<std::string>& notes) {
  if (!basis_.is_sliced()) return {};
  const FusedSource source(files_, basis_);
  const ViewSources sources{files_, basis_, &corpus, nullptr, [] { return true; }};
  const FusedLayerView view(-1, sources, source, {});
  for (const auto& transform : recipe_.transforms()) {
    if (!transform->slices()) continue;
    if (auto fitted = transform->fit(view, seed_, basis_, notes); !fitted) {
      return tl::unexpected(in_context(fitted.error(), transform->spec()));
    }
  }
  return {};
}

// The places whose slices are fitted with a layer.
std::vector<int> Fitting::places(int layer) const {
  if (!basis_.is_sliced()) return {};
  if (layer < 0) return {place_in(0)};
  return {place_mid(layer), place_out(layer)};
}

std::vector<OutputTensor> Fitting::slices(int layer) const {
  std::vector<OutputTensor> found;
  for (const int place : places(layer)) {
    const Matrix<double>* q = basis_.slice(place);
    if (q == nullptr) continue;
    OutputTensor tensor{{slice_name(place), DType::kF64, {q->rows(), q->cols()}}, {}};
    const auto* bytes = reinterpret_cast<const std::byte*>(q->data());
    tensor.bytes.assign(bytes, bytes + q->rows() * q->cols() * int64_t{sizeof(double)});
    found.push_back(std::move(tensor));
  }
  return found;
}

Status Fitting::restore_slices(int layer, const SafetensorsFile& file) {
  const int64_t d_model = files_.desc().d_model;
  for (const int place : places(layer)) {
    const int64_t width = basis_.form().widths[static_cast<size_t>(place)];
    const TensorInfo* tensor = file.find(slice_name(place));
    const bool is_parallel =
        layer >= 0 && files_.desc().layers[static_cast<size_t>(layer)].parallel;
    const bool is_absent = place == place_mid(layer) && is_parallel;
    if (tensor == nullptr && (width == d_model || is_absent)) continue;
    if (tensor == nullptr || tensor->dtype != DType::kF64 ||
        tensor->shape != Shape{d_model, width}) {
      return error("{} is not [{}, {}]", slice_name(place), d_model, width);
    }
    auto q = std::make_shared<Matrix<double>>(d_model, width);
    std::memcpy(q->data(), tensor->bytes, tensor->n_bytes);
    basis_.set_slice(place, std::move(q));
  }
  return {};
}

Status Fitting::restore(int layer, const Json& report, const SafetensorsFile& file) {
  QUERN_TRY(
      basis_.add_fitted(layer, report, [&](std::string_view name) { return file.find(name); }));
  QUERN_TRY(restore_slices(layer, file));
  return check_basis(basis_, in_basis(files_.desc(), basis_));
}

}  // namespace quern
