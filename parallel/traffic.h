#pragma once
// What a rank sends to the others and receives from them: counted, and the least that a step of
// ZeRO-3 needs.

#include "parallel/communication/communicator.h"
#include "parallel/sharded_parameters.h"

namespace supra {

/// Bytes that a rank receives, which are as many as it sends: in an all_gather n - 1 shards like
/// its own, in a reduce_scatter n - 1 pieces of the size of its own, whether they travel from rank
/// to rank in rings or directly.
struct Traffic {
  int64_t gathered = 0, reduced = 0;
  int64_t host = 0;  ///< of small host data
  int64_t collectives = 0;
  bool operator==(const Traffic&) const = default;
};

/// Stands before a communicator and counts.
class CountingCommunicator final : public Communicator {
 public:
  /// `inner` must outlive it.
  explicit CountingCommunicator(Communicator& inner) : inner_(inner) {}

  /// Since the last call.
  Traffic take() { return std::exchange(traffic_, {}); }

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  void reserve(Ops& ops, Arena& arena, int64_t elements) override {
    inner_.reserve(ops, arena, elements);
  }
  Pending all_gather(const Tensor& shard, const Tensor& full, std::string_view of) override;
  Pending reduce_scatter(const Tensor& full, const Tensor& shard, std::string_view of) override;
  void check() override { inner_.check(); }
  void abort() noexcept override { inner_.abort(); }
  void all_gather_host(const void* mine, size_t bytes, void* all,
                       std::source_location where) override;
  void broadcast_host(void* data, size_t bytes, int root, std::source_location where) override;

 private:
  int64_t from_others(size_t bytes) const {
    return (inner_.size() - 1) * static_cast<int64_t>(bytes);
  }

  Communicator& inner_;
  Traffic traffic_;
};

/// What a step of this many micro-batches moves at least when no rank keeps more whole than
/// embedding, head and two blocks: each of them is gathered once for the forward and again for the
/// backward, but for what is still there, and its gradient is reduced once a micro-batch. Embedding
/// and head stay from the first use on; of the blocks the last two of the forward are the first of
/// the backward, and its last two the first of the next forward.
Traffic least_traffic(const ShardedParameters& parameters, int64_t micro_batches, int ranks);

}  // namespace supra
