#include "tests/emulator/stream_engine.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "tests/emulator/access.h"
#include "tests/emulator/capture.h"
#include "tests/emulator/memory.h"
#include "tests/emulator/pinned_copies.h"
#include "tests/emulator/random.h"

namespace emu {
namespace {

struct Engine {
  std::recursive_mutex mutex;
  int api_depth = 0;
  std::vector<std::unique_ptr<EmuStream>> streams;  ///< dead ones too: handles stay recognisable
  std::vector<EmuStream*> live;
  std::vector<uint32_t> slots;  ///< the last sequence number given in each
  std::vector<size_t> free_slots;
  Clock host;
  bool unlocked = false;
};
Engine& engine() {
  static auto& self = *new Engine;
  return self;
}

double seconds_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

void make_device_memory_accessible() {
  if (!engine().unlocked) unlock_device_memory();
  engine().unlocked = true;
}

void begin(const EmuStream& stream, const Operation& operation) {
  make_device_memory_accessible();
  begin_operation(
      {operation.name, stream.number, stream.slot, operation.sequence, operation.clock});
}

void check_ranges(const Operation& operation) {
  for (const Range& r : operation.reads) {
    before_pinned_access(r);
    access_global(static_cast<const char*>(r.address), r.bytes, false, 0);
  }
  for (const Range& w : operation.writes) {
    before_pinned_access(w);
    access_global(static_cast<const char*>(w.address), w.bytes, true, 0);
  }
}

void poison(const std::vector<Range>& ranges) {
  for (const Range& w : ranges) {
    std::fill_n(static_cast<char*>(const_cast<void*>(w.address)), w.bytes, '\xff');
  }
}

/// One step of an external operation. `complete` tells whether it was the last.
bool step_external(EmuStream& stream, Operation& operation, bool& complete) {
  if (!operation.started) {
    begin(stream, operation);
    check_ranges(operation);
    operation.run();
    poison(operation.writes);
    operation.started = true;
    return true;
  }
  make_device_memory_accessible();
  complete = operation.poll();
  if (complete) {
    // Others may have run meanwhile; the results count as written now.
    begin(stream, operation);
    for (const Range& w : operation.writes) {
      access_global(static_cast<const char*>(w.address), w.bytes, true, 0);
    }
  }
  return complete;
}

/// Runs `call`, whose failures end all streams.
template <class F>
void catching(const Operation& operation, const F& call) {
  try {
    call();
  } catch (Failure& failure) {
    failure.sticky = true;
    error_state().set(failure);
  } catch (const std::exception& e) {
    error_state().set({cudaErrorLaunchFailure, operation.name + ": " + e.what(), true});
  }
}

/// Runs the first operation, or a part of it; false if it cannot go on now.
bool step(EmuStream& stream) {
  if (stream.queue.empty()) return false;
  Operation& operation = stream.queue.front();
  const bool failed = error_state().sticky() != cudaSuccess;
  bool complete = true, went_on = true;
  switch (operation.kind) {
    case Operation::Kind::wait:
      if (!operation.mark->done && !failed) return false;
      break;
    case Operation::Kind::record:
      operation.mark->done = true;
      operation.mark->seconds = seconds_now();
      break;
    case Operation::Kind::work:
      if (failed) break;
      catching(operation, [&] {
        begin(stream, operation);
        check_ranges(operation);
        operation.run();
      });
      break;
    case Operation::Kind::external:
      if (failed) break;
      complete = false;
      catching(operation, [&] { went_on = step_external(stream, operation, complete); });
      break;
  }
  if (complete) {
    stream.completed = operation.sequence;
    stream.queue.pop_front();
  }
  return went_on;
}

/// Runs the first operation of the stream, or one that it waits for; false if neither can go on.
bool advance(EmuStream& stream) {
  if (stream.queue.empty()) return false;
  const Operation& first = stream.queue.front();
  if (first.kind == Operation::Kind::wait && !first.mark->done && !error_state().sticky()) {
    return advance(*first.mark->stream);
  }
  return step(stream);
}

bool step_at_random() {
  const auto& live = engine().live;
  if (live.empty()) return false;
  const uint32_t first = random_below(static_cast<uint32_t>(live.size()));
  for (size_t i = 0; i < live.size(); ++i) {
    if (step(*live[(first + i) % live.size()])) return true;
  }
  return false;
}

/// Runs operations until the stream's one of that number is complete. While it waits for an
/// external one, the others' must get their turn, too: another rank may need them first.
void run_until(EmuStream& stream, uint32_t sequence) {
  while (stream.completed < sequence) {
    const bool any = schedule.streams == StreamOrder::random && one_in(2);
    if (any ? step_at_random() : advance(stream)) continue;
    if (!step_at_random()) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void after_enqueue(EmuStream& stream) {
  switch (schedule.streams) {
    case StreamOrder::lazy:
      break;
    case StreamOrder::random:
      while (one_in(4) && step_at_random()) {
      }
      break;
    case StreamOrder::eager:
      while (advance(stream)) {
      }
      break;
  }
}

void host_knows(const Clock& clock) {
  join(engine().host, clock);
  settle_pinned_copies();
}

}  // namespace

Operation work(std::string name, std::function<void()> run) {
  return {.name = std::move(name), .run = std::move(run)};
}

EmuStream& checked(cudaStream_t stream) {
  if (!stream) {
    throw Failure{cudaErrorInvalidResourceHandle,
                  "the null stream is used, which waits for all others: name a stream"};
  }
  const auto& live = engine().live;
  if (std::ranges::find(live, stream) == live.end()) {
    throw Failure{cudaErrorInvalidResourceHandle, "a stream is used that was destroyed"};
  }
  return *stream;
}

void enqueue(cudaStream_t handle, Operation operation) {
  EmuStream& stream = checked(handle);
  if (stream.capture) {
    capture_operation(stream, std::move(operation));
    return;
  }
  Engine& e = engine();
  join(stream.clock, e.host);
  stream.enqueued = operation.sequence = ++e.slots[stream.slot];
  if (stream.clock.size() <= stream.slot) stream.clock.resize(stream.slot + 1);
  stream.clock[stream.slot] = operation.sequence;
  if (operation.kind == Operation::Kind::wait) join(stream.clock, operation.mark->clock);
  operation.clock = stream.clock;
  if (operation.kind == Operation::Kind::record) {
    operation.mark->stream = &stream;
    operation.mark->sequence = operation.sequence;
    operation.mark->clock = stream.clock;
  }
  stream.queue.push_back(std::move(operation));
  Operation& queued = stream.queue.back();
  if (queued.enqueued) queued.enqueued(queued);
  after_enqueue(stream);
}

EmuStream* create_stream() {
  Engine& e = engine();
  size_t slot = e.slots.size();
  // A slot is free for good once the host knows all that ran in it: whatever comes is ordered
  // after.
  const auto reusable = std::ranges::find_if(
      e.free_slots, [&](size_t s) { return e.slots[s] == 0 || covers(e.host, s, e.slots[s]); });
  if (reusable != e.free_slots.end()) {
    slot = *reusable;
    e.free_slots.erase(reusable);
  } else {
    e.slots.push_back(0);
  }
  auto stream = std::make_unique<EmuStream>();
  stream->number = static_cast<int>(e.streams.size()) + 1;
  stream->slot = slot;
  stream->enqueued = stream->completed = e.slots[slot];
  e.live.push_back(stream.get());
  e.streams.push_back(std::move(stream));
  return e.live.back();
}

void destroy_stream(EmuStream* stream) {
  Engine& e = engine();
  run_until(*stream, stream->enqueued);
  stream->alive = false;
  std::erase(e.live, stream);
  e.free_slots.push_back(stream->slot);
}

void synchronize(EmuStream& stream) {
  refuse_in_capture(stream);
  run_until(stream, stream.enqueued);
  host_knows(stream.clock);
}

void synchronize(const Mark& mark) {
  // The stream may be gone; then it was run to its end.
  if (!mark.done) run_until(*mark.stream, mark.sequence);
  host_knows(mark.clock);
}

void synchronize_device() {
  refuse_in_any_capture("the device is synchronised");
  run_everything();
  for (EmuStream* stream : engine().live) host_knows(stream->clock);
}

void run_everything() {
  // By index: an operation may create streams.
  for (size_t i = 0; i < engine().live.size(); ++i) {
    run_until(*engine().live[i], engine().live[i]->enqueued);
  }
}

const Clock& host_clock() {
  return engine().host;
}

void make_progress(EmuStream& stream) {
  if (one_in(2)) advance(stream);
  if (one_in(2)) step_at_random();
}

void forget_streams() {
  Engine& e = engine();
  for (EmuStream* stream : e.live) {
    stream->queue.clear();
    stream->completed = stream->enqueued;
    stream->alive = false;
    stream->capture.reset();
    e.free_slots.push_back(stream->slot);
  }
  e.live.clear();
  // Nothing that ran can conflict with what comes.
  e.host = e.slots;
}

std::string live_streams() {
  std::string text;
  for (const EmuStream* stream : engine().live) {
    if (stream->of_graph) continue;
    text += fmt::format("{}stream {}", text.empty() ? "" : ", ", stream->number);
    if (!stream->queue.empty()) {
      text += fmt::format(" ({} operations never ran, the first {})", stream->queue.size(),
                          stream->queue.front().name);
    }
  }
  return text;
}

ApiCall::ApiCall() : lock_(engine().mutex) {
  ++engine().api_depth;
}

ApiCall::~ApiCall() {
  if (--engine().api_depth > 0) return;
  if (engine().unlocked) lock_device_memory();
  engine().unlocked = false;
}

cudaError_t enqueue_host_op(cudaStream_t stream, std::string name, std::vector<Range> reads,
                            std::vector<Range> writes, std::function<void()> function) {
  return ApiCall::run([&] {
    Operation operation = work(std::move(name), std::move(function));
    operation.reads = std::move(reads);
    operation.writes = std::move(writes);
    enqueue(stream, std::move(operation));
  });
}

cudaError_t enqueue_external(cudaStream_t stream, std::string name, std::vector<Range> reads,
                             std::vector<Range> writes, std::function<void()> start,
                             std::function<bool()> poll) {
  return ApiCall::run([&] {
    enqueue(stream, {.kind = Operation::Kind::external,
                     .name = std::move(name),
                     .reads = std::move(reads),
                     .writes = std::move(writes),
                     .run = std::move(start),
                     .poll = std::move(poll)});
  });
}

void fail_operation(const std::string& message) {
  throw Failure{cudaErrorLaunchFailure, message, true};
}

bool progress() {
  bool remains = false;
  ApiCall::run([&] {
    Engine& e = engine();
    for (size_t i = 0; i < e.live.size(); ++i) {
      EmuStream& stream = *e.live[i];
      // Up to the last external operation, no further: the rest may be as late as it likes.
      const auto has_external = [&] {
        return std::ranges::any_of(stream.queue, [](const Operation& operation) {
          return operation.kind == Operation::Kind::external;
        });
      };
      while (has_external() && advance(stream)) {
      }
      remains |= has_external();
    }
  });
  return remains;
}

}  // namespace emu
