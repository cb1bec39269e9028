#pragma once
// ZeRO-3: every rank keeps 1/ranks of each unit - master weights, moments, gradients - and a unit
// is whole only while it is used (Rajbhandari et al. 2020). A unit's parameters lie one after
// another in flat regions, one for those that are trained and one for those that are frozen, each
// padded and split evenly over the ranks. With one rank a region is its own shard, and nothing is
// copied.

#include <array>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/parameter_store.h"
#include "model/parameters.h"
#include "optim/optimizer.h"
#include "parallel/communication/communicator.h"
#include "runtime/phase_clock.h"

namespace supra {

enum class Trained : uint8_t {
  all,
  new_weights,  ///< those a softmax model lacks; the rest is frozen
  nothing,      ///< inference: no gradients, no optimizer state
};

/// A flat, evenly split part of a unit.
struct Region {
  std::string name;  ///< "block.3/trained"
  bool trained = false;
  int64_t size = 0;        ///< elements used
  int64_t shard_size = 0;  ///< elements a rank holds; shard_size * ranks >= size
  Tensor master;           ///< fp32 shard, only when trained
  Tensor compute;  ///< shard in the compute dtype; the master itself when that is fp32 and trained
  Tensor gradient, first_moment, second_moment;  ///< fp32 shards, only when trained
};

/// Where a parameter lies.
struct Place {
  const ParameterSpec* spec;
  int unit, region;  ///< `region` indexes ShardedParameters::regions()
  int64_t offset;    ///< of its first element in the region
};

class ShardedParameters final : public ParameterStore {
 public:
  /// Allocates the shards, and the buffers that whole units pass through.
  ShardedParameters(std::vector<UnitSpec> units, Trained trained, DType compute, Ops& ops,
                    Arena& arena, Communicator& communicator, PhaseClock& clock);

  ShardedParameters(const ShardedParameters&) = delete;
  ShardedParameters& operator=(const ShardedParameters&) = delete;

  void prefetch(int unit) override;
  std::span<const Tensor> acquire(int unit) override;
  void release(int unit) override;
  std::span<const Tensor> gradients(int unit) override;
  void reduce(int unit) override;

  /// Sets gradients to zero, before the first micro-batch of a step.
  void zero_gradients();
  /// Waits for the reductions under way; afterwards the gradient shards are complete.
  void finish_reductions();
  /// Before the shards change: what was gathered is out of date.
  void forget_gathered();

  /// Fills the shards: `read(spec, begin, count, out)` gives elements of a parameter as fp32.
  using Reader = std::function<void(const ParameterSpec&, int64_t, int64_t, float*)>;
  void load(Device& device, const Reader& read);
  /// Sets elements of a region's shard from `begin` on: the master weights, and the compute copy.
  void set_weights(Device& device, const Region& region, int64_t begin,
                   std::span<const float> values);

  const std::vector<UnitSpec>& units() const { return units_; }
  const std::vector<Region>& regions() const { return regions_; }
  const std::vector<Place>& places() const { return places_; }
  DType compute_dtype() const { return compute_; }
  int64_t trained_parameters() const;
  /// Bytes of this rank's shards that a run goes on from: weights and moments.
  size_t state_bytes() const;
  /// The trained regions, for the optimizer.
  std::vector<OptimizerShard> optimizer_shards() const;

 private:
  static constexpr int slots = 4;  ///< embedding, head, and two that blocks take in turn

  /// A buffer that units pass through, one at a time.
  struct Slot {
    std::array<Tensor, 2> buffer;  ///< trained, frozen
    int unit = -1;                 ///< whose parameters it holds, or will hold once gathered
    int holders = 0;
    std::array<Pending, 2> gathering;
    std::vector<Tensor> tensors;
  };
  struct GradientSlot {
    Tensor buffer;
    int unit = -1;  ///< whose gradients it collects; -1: free
    std::vector<Tensor> tensors;
  };

  void lay_out();
  void allocate(Arena& arena);
  int slot_of(int unit) const;
  void start_gather(int unit);
  /// The unit's tensors as views into `buffers`, empty where the region's kind has none.
  std::vector<Tensor> views(int unit, const std::array<Tensor, 2>& buffers) const;
  std::array<int, 2> regions_of(int unit) const { return unit_regions_[static_cast<size_t>(unit)]; }

  std::vector<UnitSpec> units_;
  Trained trained_;
  DType compute_;
  Ops& ops_;
  Communicator& communicator_;
  PhaseClock& clock_;

  std::vector<Region> regions_;
  std::vector<std::array<int, 2>> unit_regions_;  ///< trained, frozen; -1: none
  std::vector<Place> places_;
  std::array<Slot, slots> slots_;
  std::array<GradientSlot, slots> gradient_slots_;

  /// One rank: views of the regions themselves, by unit.
  std::vector<std::vector<Tensor>> resident_, resident_gradients_;

  Tensor reduced_;  ///< receives a reduction before it is added to the gradient shard
  Pending reducing_;
  int reducing_region_ = -1;
  int reducing_slot_ = -1;
};

}  // namespace supra
