#include "parallel/traffic.h"

#include <set>

namespace supra {

Pending CountingCommunicator::all_gather(const Tensor& shard, const Tensor& full,
                                         std::string_view of) {
  traffic_.gathered += from_others(shard.bytes());
  ++traffic_.collectives;
  return inner_.all_gather(shard, full, of);
}

Pending CountingCommunicator::reduce_scatter(const Tensor& full, const Tensor& shard,
                                             std::string_view of) {
  traffic_.reduced += from_others(shard.bytes());
  ++traffic_.collectives;
  return inner_.reduce_scatter(full, shard, of);
}

void CountingCommunicator::all_gather_host(const void* mine, size_t bytes, void* all,
                                           std::source_location where) {
  traffic_.host += from_others(bytes);
  ++traffic_.collectives;
  inner_.all_gather_host(mine, bytes, all, where);
}

void CountingCommunicator::broadcast_host(void* data, size_t bytes, int root,
                                          std::source_location where) {
  if (rank() != root) traffic_.host += static_cast<int64_t>(bytes);
  ++traffic_.collectives;
  inner_.broadcast_host(data, bytes, root, where);
}

Traffic least_traffic(const ShardedParameters& parameters, int64_t micro_batches, int ranks) {
  Traffic least;
  const int last = static_cast<int>(parameters.units().size()) - 1, blocks = last - 1;
  std::set<int> seen;
  for (const Place& place : parameters.places()) {
    if (!seen.insert(place.region).second) continue;
    const Region& region = parameters.regions()[static_cast<size_t>(place.region)];
    int64_t gathers = 1;
    if (place.unit != 0 && place.unit != last) {
      const int block = place.unit - 1;
      if (block < blocks - 2) gathers += micro_batches;  // before its backward
      if (block >= 2) gathers += micro_batches - 1;      // before the next forward
    }
    const int64_t others = ranks - 1;
    least.gathered += gathers * others * static_cast<int64_t>(region.compute.bytes());
    if (!region.trained) continue;
    least.reduced += micro_batches * others * static_cast<int64_t>(region.gradient.bytes());
  }
  return least;
}

}  // namespace supra
