#pragma once
// What a rank has done last: a ring of its collectives, and the work they are part of. Written by
// the thread that makes the calls, read by the one that watches. A call costs a lock nobody waits
// for, and no memory.

#include <array>
#include <cstdint>
#include <mutex>
#include <source_location>
#include <string>
#include <string_view>
#include <vector>

namespace supra {

enum class Operation : uint8_t { all_gather, reduce_scatter, all_gather_host, broadcast_host };
constexpr int operations = 4;
std::string_view name_of(Operation operation);

enum class CollectiveState : uint8_t {
  entered,    ///< in the call, which has not returned
  under_way,  ///< the call has returned; nobody waits for it yet
  awaited,    ///< in wait()
  done,
};
constexpr int collective_states = 4;
std::string_view name_of(CollectiveState state);

/// One call. Times are of the steady clock in nanoseconds, 0 before they come.
struct Collective {
  uint64_t sequence = 0;  ///< of this communicator's calls, from 1
  uint64_t bytes = 0;     ///< of one rank's piece
  int64_t begun = 0, awaited = 0, ended = 0;
  uint8_t communicator = 0;
  Operation operation{};
  CollectiveState state{};
  std::array<char, 61> what{};  ///< what is moved, or from where it was called; ends with a 0

  bool blocks() const {
    return state == CollectiveState::entered || state == CollectiveState::awaited;
  }
  /// Since when the rank has been in it; of one that blocks.
  int64_t blocked_since() const { return state == CollectiveState::awaited ? awaited : begun; }
  /// Whether ranks that make these calls one at a time make the same call.
  bool same_call(const Collective& other) const;
  /// "all_gather #1842 of block.17/trained"
  std::string name() const;
  /// Without the number.
  std::string call() const;
};

/// A recorder's content at one moment.
struct FlightRecord {
  int64_t now = 0;           ///< of the steady clock, as in the collectives
  double unix_time = 0;      ///< of the same moment
  std::string activity;      ///< "step 17"; empty before the first
  int64_t active_since = 0;  ///< 0: nothing is expected to end
  std::vector<std::string> communicators;
  std::vector<Collective> collectives;  ///< in the order they were begun

  double seconds_since(int64_t time) const {
    return (static_cast<double>(now) - static_cast<double>(time)) * 1e-9;
  }
};

class FlightRecorder {
 public:
  explicit FlightRecorder(size_t capacity = 4096);

  /// The index that enter() takes. At most max_communicators.
  uint8_t add_communicator(std::string name);
  static constexpr size_t max_communicators = 16;

  /// A number for set(), good for ever: one that the ring has forgotten does nothing.
  uint64_t enter(uint8_t communicator, Operation operation, uint64_t bytes, std::string_view what);
  /// The same, named by its place in the source.
  uint64_t enter(uint8_t communicator, Operation operation, uint64_t bytes,
                 std::source_location where);
  void set(uint64_t ticket, CollectiveState state);
  Collective at(uint64_t ticket) const;
  /// The number that this communicator's next collective gets.
  uint64_t next_sequence(uint8_t communicator) const;

  void begin(std::string_view activity);
  void pause();

  FlightRecord snapshot() const;

  /// What a watchdog looks at: without the ring.
  struct Status {
    int64_t now = 0;
    bool paused = true;
    int64_t active_since = 0;
    bool blocked = false;
    Collective collective;  ///< the one it is blocked in
  };
  Status status() const;

 private:
  /// A place is made a name when somebody looks.
  struct Entry {
    Collective call;
    std::source_location where;

    Collective named() const;
  };

  Entry& add(uint8_t communicator, Operation operation, uint64_t bytes);
  const Entry& entry(uint64_t ticket) const { return ring_[(ticket - 1) % ring_.size()]; }

  mutable std::mutex mutex_;
  std::vector<Entry> ring_;
  uint64_t begun_ = 0;    ///< calls so far; the n-th, from 0, lies at n modulo the ring's size
  uint64_t blocked_ = 0;  ///< ticket of the call that the rank is in; 0: none
  std::vector<std::string> communicators_;
  std::array<uint64_t, max_communicators> sequences_{};
  std::array<char, 61> activity_{};
  int64_t active_since_ = 0;
};

}  // namespace supra
