// SPDX-License-Identifier: Apache-2.0
#include "transforms/basis.h"

#include <fmt/format.h>

#include <algorithm>

namespace quern {
namespace {

constexpr std::string_view kSiteNames[kSites] = {"residual", "value",   "heads", "qk",
                                                 "ffn",      "attn_in", "mlp_in"};
constexpr int64_t kMaxLayers = 1 << 16;
// Values of all operators that a file lists: what 512 layers of 16384 values with 8 operators have.
constexpr int64_t kMaxTotal = int64_t{1} << 26;

// The name of an operator's tensor in a model's files: the rank counts a site's operators of the
// same layer.
std::string tensor_name(Site site, int layer, size_t rank, std::string_view name) {
  if (layer == BasisChange::kAllLayers) {
    return fmt::format("quern.basis.{}.{}.{}", site_name(site), rank, name);
  }
  return fmt::format("quern.basis.layers.{}.{}.{}.{}", layer, site_name(site), rank, name);
}

}  // namespace

std::string_view site_name(Site site) { return kSiteNames[static_cast<size_t>(site)]; }

void Chain::add(OperatorPtr op) {
  OperatorPtr joined = steps_.empty() ? nullptr : op->joined(steps_.back());
  if (joined != nullptr) {
    steps_.back() = std::move(joined);
  } else {
    steps_.push_back(op);
  }
  operators_.push_back(std::move(op));
}

Chain Chain::after(size_t n) const {
  Chain rest;
  for (size_t i = n; i < operators_.size(); ++i) rest.add(operators_[i]);
  return rest;
}

Chain Chain::first(size_t n) const {
  Chain front;
  for (size_t i = 0; i < n; ++i) front.add(operators_[i]);
  return front;
}

void Chain::apply_to(const float* x, int64_t count, float* y) const {
  if (steps_.empty()) {
    std::copy_n(x, count, y);
    return;
  }
  steps_[0]->apply_to(x, count, y);
  for (size_t i = 1; i < steps_.size(); ++i) steps_[i]->apply(y, count);
}

int64_t Chain::flops(int64_t count) const {
  int64_t total = 0;
  for (const OperatorPtr& op : operators_) total += op->flops() * (count / op->size());
  return total;
}

int64_t Chain::bytes() const {
  int64_t total = 0;
  for (const OperatorPtr& op : operators_) total += op->bytes();
  return total;
}

const Chain& BasisChange::at(Site site, int layer) const {
  const SiteEntries& entries = sites_[static_cast<size_t>(site)];
  const auto own = entries.own.find(layer);
  return own == entries.own.end() ? entries.common : own->second;
}

void BasisChange::add(Site site, int layer, OperatorPtr op) {
  insert(site, {stage_, layer, std::move(op), origin_});
}

void BasisChange::insert(Site site, Entry entry) {
  SiteEntries& at = sites_[static_cast<size_t>(site)];
  const int layer = entry.layer;
  const bool is_last = at.entries.empty() || at.entries.back().stage <= entry.stage;
  if (layer != kAllLayers) at.own.try_emplace(layer, at.common);
  if (is_last) {
    if (layer == kAllLayers) {
      at.common.add(entry.op);
      for (auto& [own_layer, chain] : at.own) chain.add(entry.op);
    } else {
      at.own[layer].add(entry.op);
    }
    at.entries.push_back(std::move(entry));
    return;
  }
  const auto place = std::upper_bound(at.entries.begin(), at.entries.end(), entry.stage,
                                      [](int stage, const Entry& e) { return stage < e.stage; });
  at.entries.insert(place, std::move(entry));
  const auto chain_of = [&](int of_layer) {
    Chain chain;
    for (const Entry& e : at.entries) {
      if (e.layer == kAllLayers || e.layer == of_layer) chain.add(e.op);
    }
    return chain;
  };
  at.common = chain_of(kAllLayers);
  for (auto& [own_layer, chain] : at.own) chain = chain_of(own_layer);
}

void BasisChange::set_slice(int place, std::shared_ptr<const Matrix<double>> q) {
  slices_[place] = std::move(q);
}

const Matrix<double>* BasisChange::slice(int place) const {
  const auto found = slices_.find(place);
  return found == slices_.end() ? nullptr : found->second.get();
}

bool BasisChange::empty() const {
  if (!(form_ == StreamForm())) return false;
  for (int i = 0; i < kSites; ++i) {
    if (!empty(static_cast<Site>(i))) return false;
  }
  return true;
}

bool BasisChange::empty(Site site) const {
  const auto i = static_cast<size_t>(site);
  return sites_[i].entries.empty() && !is_expected_[i];
}

BasisChange BasisChange::before_stage(int stage) const {
  BasisChange part;
  for (int i = 0; i < kSites; ++i) {
    const auto site = static_cast<Site>(i);
    for (const Entry& entry : sites_[static_cast<size_t>(i)].entries) {
      if (entry.stage < stage || site == Site::kResidual) part.insert(site, entry);
    }
  }
  part.stage_ = stage;
  part.form_ = form_;
  part.slices_ = slices_;
  return part;
}

int BasisChange::last_layer() const {
  int last = -1;
  for (const SiteEntries& site : sites_) {
    if (!site.own.empty()) last = std::max(last, site.own.rbegin()->first);
  }
  return last;
}

Json BasisChange::to_json() const {
  Json json = Json::object();
  for (int i = 0; i < kSites; ++i) {
    for (const Entry& entry : sites_[static_cast<size_t>(i)].entries) {
      Json op = entry.op->to_json();
      if (entry.layer != kAllLayers) op["layer"] = entry.layer;
      json[std::string(kSiteNames[i])].push_back(std::move(op));
    }
  }
  Json form = Json::object();
  if (form_.is_centred) form["norms"] = "rms";
  if (form_.ends != Ends::kOnline) form["ends"] = form_.has_folded_ends() ? "folded" : "turned";
  if (form_.has_biases) form["biases"] = "all";
  if (is_sliced()) form["widths"] = form_.widths;
  if (!form.empty()) json["form"] = std::move(form);
  return json;
}

namespace {

// About what it takes to make an operator, in values; from a list that may hold anything.
Result<int64_t> claimed_size(const Json& op) {
  if (!op.is_object()) return error("basis: expected an object, got {}", op.type_name());
  QUERN_ASSIGN(const int64_t size, json_int_or(op, "size", 1, kMaxOperatorSize, 1));
  QUERN_ASSIGN(const int64_t heads, json_int_or(op, "heads", 1, kMaxOperatorSize, 1));
  const bool has_tables = json_string_or(op, "op", "").value_or("") == "dct";
  return std::max(size, heads) * (has_tables ? 16 : 1);
}

Result<StreamForm> read_form(const Json& json) {
  if (!json.is_object()) return error("basis: form: expected an object, got {}", json.type_name());
  StreamForm form;
  for (const auto& item : json.items()) {
    if (item.key() == "norms" && item.value() == "rms") {
      form.is_centred = true;
    } else if (item.key() == "ends" && item.value() == "folded") {
      form.ends = Ends::kFolded;
    } else if (item.key() == "ends" && item.value() == "turned") {
      form.ends = Ends::kTurned;
    } else if (item.key() == "biases" && item.value() == "all") {
      form.has_biases = true;
    } else if (item.key() == "widths" && item.value().is_array() &&
               item.value().size() <= 2 * kMaxLayers + 1) {
      for (size_t i = 0; i < item.value().size(); ++i) {
        const Json one = {{"width", item.value()[i]}};
        QUERN_ASSIGN(const int64_t width, json_int(one, "width", 1, kMaxOperatorSize));
        form.widths.push_back(width);
      }
    } else {
      return error("basis: form: '{}' is not known", item.key());
    }
  }
  return form;
}

}  // namespace

Result<BasisChange> BasisChange::from_json(const Json& json, const FindTensor& find) {
  if (!json.is_object()) return error("basis: expected an object, got {}", json.type_name());
  BasisChange basis;
  int64_t total = 0;
  for (const auto& item : json.items()) {
    const std::string& name = item.key();
    const Json& list = item.value();
    if (name == "form") {
      QUERN_ASSIGN(basis.form_, read_form(list));
      continue;
    }
    int i = 0;
    while (i < kSites && kSiteNames[i] != name) ++i;
    if (i == kSites) return error("basis: no site '{}'", name);
    if (!list.is_array()) return error("basis: site '{}' is not a list", name);
    const auto site = static_cast<Site>(i);
    std::map<int, size_t> ranks;
    for (const Json& op : list) {
      QUERN_ASSIGN(const int64_t size, claimed_size(op));
      total += size;
      if (total > kMaxTotal) return error("basis: more than {} values of operators", kMaxTotal);
      QUERN_ASSIGN(const int64_t given, json_int_or(op, "layer", 0, kMaxLayers, kAllLayers));
      const auto layer = static_cast<int>(given);
      if (site == Site::kResidual && layer != kAllLayers) {
        return error("basis: site 'residual' has an operator for one layer");
      }
      const size_t rank = ranks[layer]++;
      // Before the operator is made: one read from a file may take tens of megabytes.
      if (ranks[layer] + (layer == kAllLayers ? 0 : ranks[kAllLayers]) > kMaxChain) {
        return error("basis: site '{}' has {} operators, at most {}", name, list.size(), kMaxChain);
      }
      QUERN_ASSIGN(OperatorPtr parsed,
                   read_operator(op, [&](std::string_view part) -> const TensorInfo* {
                     return find ? find(tensor_name(site, layer, rank, part)) : nullptr;
                   }));
      basis.add(site, layer, std::move(parsed));
    }
  }
  return basis;
}

std::vector<OperatorTensor> BasisChange::tensors(int layer) const {
  std::vector<OperatorTensor> found;
  for (int i = 0; i < kSites; ++i) {
    size_t rank = 0;
    for (const Entry& entry : sites_[static_cast<size_t>(i)].entries) {
      if (entry.layer != layer) continue;
      for (OperatorTensor& tensor : entry.op->tensors()) {
        tensor.name = tensor_name(static_cast<Site>(i), layer, rank, tensor.name);
        found.push_back(std::move(tensor));
      }
      ++rank;
    }
  }
  return found;
}

size_t BasisChange::count(Site site, int layer) const {
  const std::vector<Entry>& entries = sites_[static_cast<size_t>(site)].entries;
  return static_cast<size_t>(std::count_if(
      entries.begin(), entries.end(), [&](const Entry& entry) { return entry.layer == layer; }));
}

Json BasisChange::fitted_json(int layer) const {
  Json list = Json::array();
  for (int i = 0; i < kSites; ++i) {
    for (const Entry& entry : sites_[static_cast<size_t>(i)].entries) {
      if (entry.layer != layer || entry.origin != Origin::kFitted) continue;
      list.push_back(
          {{"site", kSiteNames[i]}, {"stage", entry.stage}, {"op", entry.op->to_json()}});
    }
  }
  return list;
}

Status BasisChange::add_fitted(int layer, const Json& json, const FindTensor& find) {
  if (!json.is_array()) return error("basis: expected a list, got {}", json.type_name());
  for (const Json& item : json) {
    QUERN_ASSIGN(const std::string name, json_string(item, "site"));
    QUERN_ASSIGN(const int64_t stage, json_int(item, "stage", 0, 1 << 16));
    const auto* found = std::find(std::begin(kSiteNames), std::end(kSiteNames), name);
    if (found == std::end(kSiteNames)) return error("basis: no site '{}'", name);
    if (!item.contains("op")) return error("basis: no operator at site '{}'", name);
    const auto site = static_cast<Site>(found - std::begin(kSiteNames));
    const size_t rank = count(site, layer);
    QUERN_ASSIGN(OperatorPtr op, read_operator(item["op"], [&](std::string_view part) {
                   return find(tensor_name(site, layer, rank, part));
                 }));
    begin_stage(static_cast<int>(stage), Origin::kFitted);
    add(site, layer, std::move(op));
  }
  return {};
}

}  // namespace quern
