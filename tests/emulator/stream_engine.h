#pragma once
// Streams: queues of operations that a seeded scheduler runs one at a time, on the host thread that
// enqueues or waits. Each operation carries a vector clock, by which unordered accesses show
// whatever the order in which they happened to run.

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "tests/emulator/epochs.h"
#include "tests/emulator/errors.h"
#include "tests/emulator/streams.h"

namespace emu {

struct Capture;

/// A recorded point of a stream.
struct Mark {
  bool done = false;
  EmuStream* stream = nullptr;
  uint32_t sequence = 0;
  Clock clock;
  double seconds = 0;
};

/// What a stream runs, or a graph repeats.
struct Operation {
  enum class Kind { work, record, wait, external };

  Kind kind = Kind::work;
  std::string name;
  std::vector<Range> reads{}, writes{};
  std::function<void()> run{};                 ///< an external operation's start
  std::function<bool()> poll{};                ///< an external operation's
  std::function<void(Operation&)> enqueued{};  ///< called when its place in a stream is known
  std::shared_ptr<Mark> mark{};                ///< of a record or wait

  // Its place, once enqueued.
  uint32_t sequence = 0;
  Clock clock{};
  bool started = false;
};

Operation work(std::string name, std::function<void()> run);

/// Puts the operation on a stream, or into the graph that the stream captures.
void enqueue(cudaStream_t stream, Operation operation);
/// Fails for the null stream and for one that was destroyed.
EmuStream& checked(cudaStream_t stream);
/// A stream without capture, for the emulator's own use.
EmuStream* create_stream();
void destroy_stream(EmuStream* stream);

/// Runs what must run before everything enqueued so far is complete, and notes that the host knows
/// it.
void synchronize(EmuStream& stream);
void synchronize(const Mark& mark);
void synchronize_device();
/// Runs some operation of the stream, now and then.
void make_progress(EmuStream& stream);
/// Runs everything, but the host is not said to have waited.
void run_everything();

/// What the host has waited for.
const Clock& host_clock();

void forget_streams();
void forget_events();
std::string live_streams();
std::string live_events();

/// A call of the CUDA API: one at a time, its failures the call's status, device memory out of
/// reach again at its end.
class ApiCall {
 public:
  ApiCall();
  ~ApiCall();
  ApiCall(const ApiCall&) = delete;
  ApiCall& operator=(const ApiCall&) = delete;

  /// `call` returns nothing, or a status.
  template <class F>
  static cudaError_t run(const F& call) {
    const ApiCall guard;
    if (error_state().sticky()) return error_state().sticky();
    cudaError_t status = cudaSuccess;
    try {
      if constexpr (std::is_void_v<decltype(call())>) {
        call();
      } else {
        status = call();
      }
    } catch (const Failure& failure) {
      return error_state().set(failure);
    }
    return error_state().sticky() ? error_state().sticky() : status;
  }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

}  // namespace emu

struct EmuStream {
  int number;   ///< as shown in messages
  size_t slot;  ///< in clocks; used again by later streams
  uint32_t enqueued = 0, completed = 0;
  emu::Clock clock;
  std::deque<emu::Operation> queue;
  std::shared_ptr<emu::Capture> capture;
  size_t capture_lane = 0;
  bool of_graph = false;  ///< the emulator's own
  bool alive = true;
};

struct EmuEvent {
  std::shared_ptr<emu::Mark> mark;        ///< of the last record
  std::shared_ptr<emu::Capture> capture;  ///< in which it was recorded, if in one
  size_t captured_mark = 0;
  bool has_timing = true, alive = true;
};
