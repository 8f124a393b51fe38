// SPDX-License-Identifier: Apache-2.0
#include "eval/baseline.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "base/float_types.h"
#include "base/parallel.h"
#include "base/random.h"
#include "formats/json.h"
#include "model/sampler.h"

namespace quern {
namespace {

constexpr const char* kFormat = "quern-baseline";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxVocab = 1 << 24, kMaxPositions = int64_t{1} << 40;

float float_at(const std::byte* floats, int64_t i) {
  float value;
  std::memcpy(&value, floats + 4 * i, 4);
  return value;
}

// log(sum exp(x)) in double.
double log_sum(std::span<const float> x) {
  const float largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float value : x) sum += std::exp(static_cast<double>(value) - largest);
  return largest + std::log(sum);
}

// x log(x / y) - x + y >= 0, from logs; y may be 0 only where x is.
double gap(double x, double log_x, double y, double log_y) { return x * (log_x - log_y) - x + y; }

// One row of a baseline from the logits of its position.
struct Row {
  uint32_t *tokens, *drawn;
  uint16_t *logs, *drawn_logs;
  float* tail;
};

void fill_row(std::span<const float> logits, double norm, int64_t k, int64_t n_drawn,
              uint64_t position, const Row& row) {
  std::vector<uint32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0U);
  const auto likelier = [&](uint32_t a, uint32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), likelier);
  std::sort(order.begin(), order.begin() + k, likelier);
  const auto half_log = [&](uint32_t token) {
    return float_to_f16(static_cast<float>(logits[token] - norm));
  };
  for (int64_t i = 0; i < k; ++i) {
    row.tokens[i] = order[static_cast<size_t>(i)];
    row.logs[i] = half_log(row.tokens[i]);
  }
  std::vector<char> is_top(logits.size());
  for (int64_t i = 0; i < k; ++i) is_top[order[static_cast<size_t>(i)]] = 1;
  // Sums of the rest; where a likeliest token stands they do not grow, so that none is drawn.
  std::vector<double> sums(logits.size());
  double tail = 0;
  for (size_t j = 0; j < sums.size(); ++j) {
    if (is_top[j] == 0) tail += std::exp(logits[j] - norm);
    sums[j] = tail;
  }
  *row.tail = static_cast<float>(tail);
  Random random(0, position);
  for (int64_t j = 0; j < n_drawn; ++j) {
    if (*row.tail == 0) {  // nothing to draw from; never read
      row.drawn[j] = order[0];
      row.drawn_logs[j] = 0;
      continue;
    }
    const double at = std::min(random.uniform() * tail, std::nextafter(tail, 0.0));
    const auto place = std::upper_bound(sums.begin(), sums.end(), at) - sums.begin();
    row.drawn[j] = static_cast<uint32_t>(place);
    row.drawn_logs[j] = half_log(row.drawn[j]);
  }
}

std::vector<uint16_t> narrow(const std::vector<uint32_t>& tokens) {
  return {tokens.begin(), tokens.end()};
}

struct Field {
  const char* name;
  DType dtype;
  Shape shape;
  const std::byte** bytes;
};

}  // namespace

void BaselineWriter::add(const Matrix<float>& logits, std::span<const int32_t> target) {
  const int64_t n = logits.rows(), first = n_;
  n_vocab_ = logits.cols();
  QUERN_CHECK(k_ >= 1 && k_ <= n_vocab_ && n_drawn_ >= 2);
  n_ += n;
  const auto all = static_cast<size_t>(n_);
  for (auto* list : {&tail_, &nll_}) list->resize(all);
  tokens_.resize(all * static_cast<size_t>(k_));
  logs_.resize(tokens_.size());
  drawn_.resize(all * static_cast<size_t>(n_drawn_));
  drawn_logs_.resize(drawn_.size());
  parallel_for(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = first + i;
      const std::span<const float> row(logits.row(i), static_cast<size_t>(n_vocab_));
      const double norm = log_sum(row);
      nll_[static_cast<size_t>(at)] =
          static_cast<float>(norm - row[static_cast<size_t>(target[static_cast<size_t>(i)])]);
      fill_row(row, norm, k_, n_drawn_, static_cast<uint64_t>(at),
               {tokens_.data() + at * k_, drawn_.data() + at * n_drawn_, logs_.data() + at * k_,
                drawn_logs_.data() + at * n_drawn_, &tail_[static_cast<size_t>(at)]});
    }
  });
}

Status BaselineWriter::write(const std::string& path, const BaselineText& text,
                             const std::string& model, const std::string& name) const {
  QUERN_CHECK(text.n_positions == n_);
  for (const float value : tail_) {
    if (!std::isfinite(value)) return error("{}: the base's logits are no numbers", path);
  }
  const DType index = n_vocab_ > 65536 ? DType::kU32 : DType::kU16;
  const Json facts = {{"text", text.digest},   {"protocol", text.protocol},
                      {"ctx", text.n_ctx},     {"windows", text.n_windows},
                      {"model", model},        {"name", valid_utf8(name)},
                      {"vocabulary", n_vocab_}};
  const std::vector<TensorSpec> specs = {{"tokens", index, {n_, k_}},
                                         {"logs", DType::kF16, {n_, k_}},
                                         {"tail", DType::kF32, {n_}},
                                         {"drawn", index, {n_, n_drawn_}},
                                         {"drawn_logs", DType::kF16, {n_, n_drawn_}},
                                         {"nll", DType::kF32, {n_}}};
  QUERN_ASSIGN(SafetensorsWriter writer,
               SafetensorsWriter::create(path, specs,
                                         {{"format", kFormat},
                                          {"version", fmt::format("{}", kVersion)},
                                          {"baseline", facts.dump()}}));
  const auto append = [&](const TensorSpec& spec, const auto& list) {
    return writer.append(spec.name, list.data(), list.size() * sizeof(list[0]));
  };
  for (const TensorSpec& spec : writer.order()) {
    const bool is_index = spec.name == "tokens" || spec.name == "drawn";
    if (is_index) {
      const std::vector<uint32_t>& list = spec.name == "tokens" ? tokens_ : drawn_;
      QUERN_TRY(index == DType::kU32 ? append(spec, list) : append(spec, narrow(list)));
    } else if (spec.dtype == DType::kF16) {
      QUERN_TRY(append(spec, spec.name == "logs" ? logs_ : drawn_logs_));
    } else {
      QUERN_TRY(append(spec, spec.name == "tail" ? tail_ : nll_));
    }
  }
  return writer.finish();
}

Result<Baseline> Baseline::open(const std::string& path) {
  QUERN_ASSIGN(auto file, MappedFile::open(path));
  Result<Baseline> parsed = parse(file->bytes());
  if (!parsed) return tl::unexpected(in_context(parsed.error(), path));
  parsed->file_ = std::move(file);
  return parsed;
}

Result<Baseline> Baseline::parse(std::span<const std::byte> image) {
  QUERN_ASSIGN(SafetensorsHeader header, parse_safetensors(image));
  const auto word = [&](const char* key) {
    const auto found = header.metadata.find(key);
    return found == header.metadata.end() ? std::string() : found->second;
  };
  if (word("format") != kFormat) return error("not a baseline that quern wrote");
  if (word("version") != fmt::format("{}", kVersion)) {
    return error("version '{}', expected {}", word("version"), kVersion);
  }
  QUERN_ASSIGN(const Json facts, parse_json(word("baseline"), "baseline"));
  if (!facts.is_object()) return error("baseline: expected an object");
  Baseline baseline;
  QUERN_ASSIGN(baseline.text_.digest, json_string(facts, "text"));
  QUERN_ASSIGN(baseline.text_.protocol, json_string(facts, "protocol"));
  QUERN_ASSIGN(baseline.text_.n_ctx, json_int(facts, "ctx", 1, int64_t{1} << 32));
  QUERN_ASSIGN(baseline.text_.n_windows, json_int(facts, "windows", 1, kMaxPositions));
  QUERN_ASSIGN(baseline.model_, json_string(facts, "model"));
  QUERN_ASSIGN(baseline.name_, json_string(facts, "name"));
  QUERN_ASSIGN(baseline.n_vocab_, json_int(facts, "vocabulary", 1, kMaxVocab));
  const TensorInfo* tokens = find_tensor(header.tensors, "tokens");
  const TensorInfo* drawn = find_tensor(header.tensors, "drawn");
  if (tokens == nullptr || tokens->shape.size() != 2 || drawn == nullptr ||
      drawn->shape.size() != 2) {
    return error("tensors 'tokens' and 'drawn': expected two axes each");
  }
  const int64_t n = tokens->shape[0], k = tokens->shape[1], m = drawn->shape[1];
  if (n < 1 || n > kMaxPositions || k < 1 || k > baseline.n_vocab_ || m < 2 || m > kMaxVocab) {
    return error("{} positions of {} likeliest and {} drawn tokens of {}", n, k, m,
                 baseline.n_vocab_);
  }
  baseline.text_.n_positions = n;
  baseline.k_ = k;
  baseline.n_drawn_ = m;
  baseline.is_wide_ = baseline.n_vocab_ > 65536;
  const DType index = baseline.is_wide_ ? DType::kU32 : DType::kU16;
  const Field fields[] = {{"tokens", index, {n, k}, &baseline.tokens_},
                          {"logs", DType::kF16, {n, k}, &baseline.logs_},
                          {"tail", DType::kF32, {n}, &baseline.tail_},
                          {"drawn", index, {n, m}, &baseline.drawn_},
                          {"drawn_logs", DType::kF16, {n, m}, &baseline.drawn_logs_},
                          {"nll", DType::kF32, {n}, &baseline.nll_}};
  for (const Field& field : fields) {
    const TensorInfo* tensor = find_tensor(header.tensors, field.name);
    if (tensor == nullptr || tensor->dtype != field.dtype || tensor->shape != field.shape) {
      return error("tensor '{}': expected {} [{}]", field.name, dtype_name(field.dtype),
                   fmt::join(field.shape, ", "));
    }
    *field.bytes = tensor->bytes;
  }
  QUERN_TRY(baseline.check_rows());
  return baseline;
}

uint32_t Baseline::token(const std::byte* tokens, int64_t i) const {
  if (is_wide_) {
    uint32_t wide;
    std::memcpy(&wide, tokens + 4 * i, 4);
    return wide;
  }
  uint16_t narrow;
  std::memcpy(&narrow, tokens + 2 * i, 2);
  return narrow;
}

Status Baseline::check_rows() const {
  std::vector<char> is_top(static_cast<size_t>(n_vocab_));
  for (int64_t i = 0; i < n_positions(); ++i) {
    QUERN_TRY(check_row(i, is_top));
    for (int64_t j = 0; j < k_; ++j) is_top[token(tokens_, i * k_ + j)] = 0;
  }
  return {};
}

// `is_top`: all zero before; the row's likeliest tokens after.
Status Baseline::check_row(int64_t position, std::vector<char>& is_top) const {
  const auto is_log = [](float value) { return std::isfinite(value) && value <= 0.001f; };
  double sum = float_at(tail_, position);
  if (!(sum >= 0 && sum <= 1.001)) return error("position {}: a tail of {}", position, sum);
  const bool has_tail = sum > 0;
  if (!std::isfinite(float_at(nll_, position))) return error("position {}: nll", position);
  for (int64_t j = 0; j < k_; ++j) {
    const uint32_t id = token(tokens_, position * k_ + j);
    const float log = half_at(logs_, position * k_ + j);
    if (static_cast<int64_t>(id) >= n_vocab_ || is_top[id] != 0 || !is_log(log)) {
      return error("position {}: token {} of log-probability {}, twice or out of range", position,
                   id, log);
    }
    is_top[id] = 1;
    sum += std::exp(static_cast<double>(log));
  }
  if (std::abs(sum - 1) > 0.01) {
    return error("position {}: probabilities sum to {}", position, sum);
  }
  for (int64_t j = 0; j < n_drawn_ && has_tail; ++j) {
    const uint32_t id = token(drawn_, position * n_drawn_ + j);
    const float log = half_at(drawn_logs_, position * n_drawn_ + j);
    if (static_cast<int64_t>(id) >= n_vocab_ || is_top[id] != 0 || !is_log(log)) {
      return error("position {}: drew token {} of log-probability {}", position, id, log);
    }
  }
  return {};
}

double Baseline::nll() const {
  double sum = 0;
  for (int64_t i = 0; i < n_positions(); ++i) sum += float_at(nll_, i);
  return sum / static_cast<double>(n_positions());
}

BaselineDivergence Baseline::compare(int64_t position, std::span<const float> logits) const {
  QUERN_CHECK(position < n_positions() && static_cast<int64_t>(logits.size()) == n_vocab_);
  const double norm = log_sum(logits);
  BaselineDivergence result;
  double q_top = 0, in_top = 0;
  for (int64_t j = 0; j < k_; ++j) {
    const double log_p = half_at(logs_, position * k_ + j);
    const double log_q = logits[token(tokens_, position * k_ + j)] - norm;
    const double q = std::exp(log_q);
    in_top += gap(std::exp(log_p), log_p, q, log_q);
    q_top += q;
  }
  result.is_same_top = static_cast<uint32_t>(argmax(logits)) == token(tokens_, position * k_);
  const double p_tail = float_at(tail_, position), q_tail = std::max(0.0, 1 - q_top);
  if (p_tail == 0) {
    result.kl = result.kl_least = in_top + (k_ < n_vocab_ ? q_tail : 0);
    return result;
  }
  // The sum of q over S is exact to 1e-15 or so, and no rest is truly empty.
  const double q_rest = std::max(q_tail, 1e-15);
  result.kl_least = in_top + gap(p_tail, std::log(p_tail), q_rest, std::log(q_rest));
  double sum = 0, squares = 0;
  for (int64_t j = 0; j < n_drawn_; ++j) {
    const int64_t at = position * n_drawn_ + j;
    const double ratio = half_at(drawn_logs_, at) - (logits[token(drawn_, at)] - norm);
    sum += ratio;
    squares += ratio * ratio;
  }
  const auto m = static_cast<double>(n_drawn_);
  result.kl = in_top + p_tail * sum / m - p_tail + q_tail;
  result.tail_variance = p_tail * p_tail * std::max(0.0, squares - sum * sum / m) / (m - 1) / m;
  return result;
}

}  // namespace quern
