#pragma once
// Order. An epoch numbers an interval that nothing interrupts: of one operation, or within a kernel
// of one block between two barriers. Operations are ordered by vector clocks: one counter a stream.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace emu {

/// How many operations of each stream (by its slot) are known to come before.
using Clock = std::vector<uint32_t>;
/// Component-wise maximum.
void join(Clock& clock, const Clock& other);
/// Whether the operation with this sequence number in that stream is known to come before.
inline bool covers(const Clock& clock, size_t slot, uint32_t sequence) {
  return slot < clock.size() && clock[slot] >= sequence;
}

/// What runs now, by the first epoch of the operation and of its running block, and the epoch
/// itself.
struct Now {
  uint32_t operation = 0, block = 0, epoch = 0;
};
extern Now now;

/// A new epoch, which nothing has used.
uint32_t next_epoch();
inline void begin_block_epoch() {
  now.block = now.epoch = next_epoch();
}

/// The operation that runs from now on: its place in its stream, and what comes before it.
struct OperationPlace {
  std::string name;
  int stream;  ///< as shown in messages
  size_t slot;
  uint32_t sequence;
  Clock before;
};
void begin_operation(const OperationPlace& place);

/// Epochs found to be ordered before the running operation, by their low bits.
extern std::array<uint32_t, 256> known_ordered;
bool find_ordered(uint32_t epoch);
/// Whether the operation that ran in this epoch comes before the running one, or is the same.
inline bool is_ordered(uint32_t epoch) {
  return known_ordered[epoch % known_ordered.size()] == epoch || find_ordered(epoch);
}
/// "rms_norm<float> (operation 7 of stream 2)"
std::string describe_operation(uint32_t epoch);
std::string describe_running_operation();

}  // namespace emu
