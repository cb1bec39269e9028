#include "parallel/sharded_parameters.h"

#include <algorithm>

namespace supra {
namespace {

constexpr int64_t alignment =
    64;  // elements: keeps every parameter on a cache line, and shards too

int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

}  // namespace

ShardedParameters::ShardedParameters(std::vector<UnitSpec> units, Trained trained, DType compute,
                                     Ops& ops, Arena& arena, Communicator& communicator,
                                     PhaseClock& clock)
    : units_(std::move(units)),
      trained_(trained),
      compute_(compute),
      ops_(ops),
      communicator_(communicator),
      clock_(clock) {
  lay_out();
  allocate(arena);
}

void ShardedParameters::lay_out() {
  const int64_t ranks = communicator_.size();
  for (size_t u = 0; u < units_.size(); ++u) {
    std::array<int, 2> mine{-1, -1};
    for (const ParameterSpec& p : units_[u].parameters) {
      const bool train = trained_ == Trained::all || (trained_ == Trained::new_weights && p.is_new);
      int& index = mine[train ? 0 : 1];
      if (index < 0) {
        index = static_cast<int>(regions_.size());
        Region r;
        r.name = units_[u].name + (train ? "/trained" : "/frozen");
        r.trained = train;
        regions_.push_back(r);
      }
      Region& region = regions_[static_cast<size_t>(index)];
      places_.push_back({&p, static_cast<int>(u), index, region.size});
      region.size = round_up(region.size + p.shape.numel(), alignment);
    }
    unit_regions_.push_back(mine);
  }
  for (Region& r : regions_) r.shard_size = round_up(r.size, ranks * alignment) / ranks;
}

void ShardedParameters::allocate(Arena& arena) {
  const auto flat = [&](MemoryClass c, DType t, int64_t n) { return arena.allocate(c, t, {n}); };
  for (Region& r : regions_) {
    const int64_t n = r.shard_size;
    if (!r.trained) {
      r.compute = flat(MemoryClass::parameters, compute_, n);
      ops_.zero(r.compute);  // the padding, that is; it is gathered and saved like the rest
      continue;
    }
    r.master = flat(MemoryClass::parameters, DType::fp32, n);
    r.compute = compute_ == DType::fp32 ? r.master : flat(MemoryClass::parameters, compute_, n);
    r.gradient = flat(MemoryClass::gradients, DType::fp32, n);
    r.first_moment = flat(MemoryClass::optimizer, DType::fp32, n);
    r.second_moment = flat(MemoryClass::optimizer, DType::fp32, n);
    ops_.zero(r.master);
    ops_.zero(r.compute);
    ops_.zero(r.gradient);
    ops_.zero(r.first_moment);
    ops_.zero(r.second_moment);
  }
  const int64_t ranks = communicator_.size();
  if (ranks == 1) {
    for (size_t u = 0; u < units_.size(); ++u) {
      std::array<Tensor, 2> whole, gradient;
      for (size_t k = 0; k < 2; ++k) {
        if (unit_regions_[u][k] < 0) continue;
        const Region& r = regions_[static_cast<size_t>(unit_regions_[u][k])];
        whole[k] = r.compute;
        gradient[k] = r.gradient;
      }
      resident_.push_back(views(static_cast<int>(u), whole));
      resident_gradients_.push_back(views(static_cast<int>(u), gradient));
    }
    return;
  }
  // A slot holds the largest of the units that pass through it.
  std::array<std::array<int64_t, 2>, slots> shard_sizes{};
  int64_t largest = 0;
  for (size_t u = 0; u < units_.size(); ++u) {
    for (size_t k = 0; k < 2; ++k) {
      if (unit_regions_[u][k] < 0) continue;
      const int64_t n = regions_[static_cast<size_t>(unit_regions_[u][k])].shard_size;
      int64_t& most = shard_sizes[static_cast<size_t>(slot_of(static_cast<int>(u)))][k];
      most = std::max(most, n);
      if (k == 0) largest = std::max(largest, n);
    }
  }
  for (size_t s = 0; s < slots; ++s) {
    for (size_t k = 0; k < 2; ++k) {
      const int64_t n = shard_sizes[s][k] * ranks;
      if (n) slots_[s].buffer[k] = flat(MemoryClass::gathered, compute_, n);
    }
    if (const int64_t n = shard_sizes[s][0] * ranks) {
      gradient_slots_[s].buffer = flat(MemoryClass::gathered, DType::fp32, n);
    }
  }
  if (largest) {
    reduced_ = flat(MemoryClass::communication, DType::fp32, largest);
    communicator_.reserve(ops_, arena, largest * ranks);
  }
}

int ShardedParameters::slot_of(int unit) const {
  const int last = static_cast<int>(units_.size()) - 1;
  return unit == 0 ? 0 : (unit == last ? 1 : 2 + unit % 2);
}

std::vector<Tensor> ShardedParameters::views(int unit, const std::array<Tensor, 2>& buffers) const {
  std::vector<Tensor> tensors;
  for (const Place& p : places_) {
    if (p.unit != unit) continue;
    const Tensor& buffer = buffers[regions_[static_cast<size_t>(p.region)].trained ? 0 : 1];
    tensors.push_back(
        buffer ? buffer.slice(p.offset, p.offset + p.spec->shape.numel()).view(p.spec->shape)
               : Tensor());
  }
  return tensors;
}

void ShardedParameters::start_gather(int unit) {
  Slot& slot = slots_[static_cast<size_t>(slot_of(unit))];
  if (slot.unit == unit) return;
  SUPRA_CHECK(slot.holders == 0, "unit {} is gathered while its slot is still used by unit {}",
              units_[static_cast<size_t>(unit)].name, slot.unit);
  for (Pending& p : slot.gathering) p.wait();
  slot.unit = unit;
  std::array<Tensor, 2> whole;
  for (size_t k = 0; k < 2; ++k) {
    const int index = regions_of(unit)[k];
    if (index < 0) continue;
    const Region& r = regions_[static_cast<size_t>(index)];
    whole[k] = slot.buffer[k].slice(0, r.shard_size * communicator_.size());
    slot.gathering[k] = communicator_.all_gather(r.compute, whole[k], r.name);
  }
  slot.tensors = views(unit, whole);
}

void ShardedParameters::prefetch(int unit) {
  if (communicator_.size() == 1) return;
  const Slot& slot = slots_[static_cast<size_t>(slot_of(unit))];
  if (slot.holders > 0) return;
  const PhaseClock::Span span(clock_, Phase::gather);
  start_gather(unit);
}

std::span<const Tensor> ShardedParameters::acquire(int unit) {
  if (communicator_.size() == 1) return resident_[static_cast<size_t>(unit)];
  const PhaseClock::Span span(clock_, Phase::gather);
  start_gather(unit);
  Slot& slot = slots_[static_cast<size_t>(slot_of(unit))];
  for (Pending& p : slot.gathering) p.wait();
  ++slot.holders;
  return slot.tensors;
}

void ShardedParameters::release(int unit) {
  if (communicator_.size() == 1) return;
  Slot& slot = slots_[static_cast<size_t>(slot_of(unit))];
  SUPRA_CHECK(slot.unit == unit && slot.holders > 0, "unit {} is released without being held",
              units_[static_cast<size_t>(unit)].name);
  --slot.holders;
}

std::span<const Tensor> ShardedParameters::gradients(int unit) {
  if (communicator_.size() == 1) return resident_gradients_[static_cast<size_t>(unit)];
  const int index = slot_of(unit);
  GradientSlot& slot = gradient_slots_[static_cast<size_t>(index)];
  if (slot.unit == unit) return slot.tensors;
  if (reducing_slot_ == index) finish_reductions();
  SUPRA_CHECK(slot.unit < 0, "gradients of unit {} begin before those of unit {} are reduced", unit,
              slot.unit);
  slot.unit = unit;
  std::array<Tensor, 2> buffers;
  if (const int region = regions_of(unit)[0]; region >= 0) {
    const int64_t n = regions_[static_cast<size_t>(region)].shard_size * communicator_.size();
    buffers[0] = slot.buffer.slice(0, n);
    ops_.zero(buffers[0]);
  }
  slot.tensors = views(unit, buffers);
  return slot.tensors;
}

void ShardedParameters::reduce(int unit) {
  if (communicator_.size() == 1) return;
  const PhaseClock::Span span(clock_, Phase::reduce);
  finish_reductions();
  const int index = slot_of(unit);
  GradientSlot& slot = gradient_slots_[static_cast<size_t>(index)];
  SUPRA_CHECK(slot.unit == unit, "unit {} is reduced but has no gradients", unit);
  slot.unit = -1;
  const int region = regions_of(unit)[0];
  if (region < 0) return;
  const Region& r = regions_[static_cast<size_t>(region)];
  reducing_region_ = region;
  reducing_slot_ = index;
  reducing_ =
      communicator_.reduce_scatter(slot.buffer.slice(0, r.shard_size * communicator_.size()),
                                   reduced_.slice(0, r.shard_size), r.name);
}

void ShardedParameters::finish_reductions() {
  if (reducing_region_ < 0) return;
  const PhaseClock::Span span(clock_, Phase::reduce);
  reducing_.wait();
  const Region& r = regions_[static_cast<size_t>(reducing_region_)];
  ops_.accumulate(reduced_.slice(0, r.shard_size), r.gradient);
  reducing_region_ = reducing_slot_ = -1;
}

void ShardedParameters::zero_gradients() {
  for (const Region& r : regions_) {
    if (r.trained) ops_.zero(r.gradient);
  }
}

void ShardedParameters::forget_gathered() {
  for (Slot& slot : slots_) {
    for (Pending& p : slot.gathering) p.wait();
    slot.unit = -1;
  }
}

void ShardedParameters::load(Device& device, const Reader& read) {
  constexpr int64_t piece = int64_t{1} << 22;  // host memory: 16 MiB at a time
  std::vector<float> host;
  for (const Place& p : places_) {
    const Region& r = regions_[static_cast<size_t>(p.region)];
    const int64_t first = r.shard_size * communicator_.rank();
    const int64_t begin = std::max(p.offset, first);
    const int64_t end = std::min(p.offset + p.spec->shape.numel(), first + r.shard_size);
    for (int64_t at = begin; at < end; at += piece) {
      const int64_t n = std::min(piece, end - at);
      host.resize(static_cast<size_t>(n));
      read(*p.spec, at - p.offset, n, host.data());
      set_weights(device, r, at - first, host);
    }
  }
}

void ShardedParameters::set_weights(Device& device, const Region& region, int64_t begin,
                                    std::span<const float> values) {
  const int64_t end = begin + static_cast<int64_t>(values.size());
  if (region.master) device.copy_in(values.data(), region.master.slice(begin, end));
  if (compute_ == DType::bf16) {
    const std::vector<bf16> rounded(values.begin(), values.end());
    device.copy_in(rounded.data(), region.compute.slice(begin, end));
  } else if (!region.master) {
    device.copy_in(values.data(), region.compute.slice(begin, end));
  }
}

int64_t ShardedParameters::trained_parameters() const {
  int64_t n = 0;
  for (const Place& p : places_) {
    if (regions_[static_cast<size_t>(p.region)].trained) n += p.spec->shape.numel();
  }
  return n;
}

size_t ShardedParameters::state_bytes() const {
  size_t bytes = 0;
  for (const Region& r : regions_) {
    bytes += r.trained ? r.master.bytes() + r.first_moment.bytes() + r.second_moment.bytes()
                       : r.compute.bytes();
  }
  return bytes;
}

std::vector<OptimizerShard> ShardedParameters::optimizer_shards() const {
  std::vector<OptimizerShard> shards;
  for (const Region& r : regions_) {
    if (!r.trained) continue;
    shards.push_back({r.master, r.gradient, r.first_moment, r.second_moment,
                      compute_ == DType::fp32 ? Tensor() : r.compute});
  }
  return shards;
}

}  // namespace supra
