// SPDX-License-Identifier: Apache-2.0
#include "report/tensor_costs.h"

#include <map>

namespace quern {

double TensorCost::bpw() const {
  return n_weights > 0 ? 8.0 * static_cast<double>(bytes) / static_cast<double>(n_weights) : 0;
}

std::vector<TensorCost> tensor_costs(const ModelFiles& files) {
  std::map<std::string, WeightId> ids;
  for (const WeightId& id : files.store().weight_ids()) {
    ids.emplace(files.store().stored_name(id), id);
  }
  const auto& coded = files.packed().tensors;
  std::map<std::string, TensorCost> rows;
  for (const TensorInfo& tensor : files.store().checkpoint().tensors()) {
    std::string weight = tensor.name;
    const size_t dot = tensor.name.rfind('.');
    if (dot != std::string::npos && coded.contains(tensor.name.substr(0, dot))) {
      weight = tensor.name.substr(0, dot);
    }
    TensorCost& row = rows[weight];
    row.name = weight;
    row.bytes += tensor.n_bytes;
    if (const auto id = ids.find(weight); id != ids.end()) row.id = id->second;
    if (const auto packed = coded.find(weight); packed != coded.end()) {
      row.kind = packed->second.codec->spec();
      if (packed->second.act != nullptr) row.act = packed->second.act->spec();
      row.n_weights = packed->second.n_out * packed->second.n_in;
      row.error = packed->second.error;
    } else {
      row.kind = dtype_name(tensor.dtype);
      row.n_weights = element_count(tensor.shape).value_or(0);
    }
  }
  std::vector<TensorCost> list;
  list.reserve(rows.size());
  for (auto& [name, row] : rows) list.push_back(std::move(row));
  return list;
}

}  // namespace quern
