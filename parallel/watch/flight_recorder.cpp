#include "parallel/watch/flight_recorder.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "runtime/error.h"

namespace supra {
namespace {

int64_t steady_now() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

template <size_t n>
void copy_text(std::string_view text, std::array<char, n>& to) {
  to[text.copy(to.data(), n - 1)] = 0;
}

}  // namespace

std::string_view name_of(Operation operation) {
  constexpr std::string_view names[operations] = {"all_gather", "reduce_scatter", "all_gather_host",
                                                  "broadcast_host"};
  return names[static_cast<size_t>(operation)];
}

std::string_view name_of(CollectiveState state) {
  constexpr std::string_view names[collective_states] = {"entered", "under way", "awaited", "done"};
  return names[static_cast<size_t>(state)];
}

bool Collective::same_call(const Collective& other) const {
  return operation == other.operation && bytes == other.bytes && what == other.what;
}

std::string Collective::name() const {
  const bool device = operation == Operation::all_gather || operation == Operation::reduce_scatter;
  return fmt::format("{} #{}{}{}", name_of(operation), sequence,
                     what[0] == 0 ? "" : (device ? " of " : " at "), what.data());
}

std::string Collective::call() const {
  return fmt::format("{} of {}{}{} bytes a rank", name_of(operation), what.data(),
                     what[0] == 0 ? "" : ", ", bytes);
}

FlightRecorder::FlightRecorder(size_t capacity) : ring_(capacity) {
  SUPRA_CHECK(capacity > 0, "a flight recorder of no collectives");
}

uint8_t FlightRecorder::add_communicator(std::string name) {
  const std::lock_guard lock(mutex_);
  SUPRA_CHECK(communicators_.size() < max_communicators, "more than {} communicators are recorded",
              max_communicators);
  communicators_.push_back(std::move(name));
  return static_cast<uint8_t>(communicators_.size() - 1);
}

FlightRecorder::Entry& FlightRecorder::add(uint8_t communicator, Operation operation,
                                           uint64_t bytes) {
  Entry& entry = ring_[begun_ % ring_.size()];
  entry = {};
  entry.call.sequence = ++sequences_[communicator];
  entry.call.bytes = bytes;
  entry.call.begun = steady_now();
  entry.call.communicator = communicator;
  entry.call.operation = operation;
  blocked_ = ++begun_;
  return entry;
}

uint64_t FlightRecorder::enter(uint8_t communicator, Operation operation, uint64_t bytes,
                               std::string_view what) {
  const std::lock_guard lock(mutex_);
  copy_text(what, add(communicator, operation, bytes).call.what);
  return begun_;
}

uint64_t FlightRecorder::enter(uint8_t communicator, Operation operation, uint64_t bytes,
                               std::source_location where) {
  const std::lock_guard lock(mutex_);
  add(communicator, operation, bytes).where = where;
  return begun_;
}

Collective FlightRecorder::Entry::named() const {
  Collective c = call;
  if (where.line() > 0)
    copy_text(fmt::format("{}:{}", path_in_tree(where.file_name()), where.line()), c.what);
  return c;
}

void FlightRecorder::set(uint64_t ticket, CollectiveState state) {
  const std::lock_guard lock(mutex_);
  if (ticket + ring_.size() <= begun_) return;  // forgotten
  Collective& c = ring_[(ticket - 1) % ring_.size()].call;
  c.state = state;
  if (c.blocks()) {
    blocked_ = ticket;
  } else if (blocked_ == ticket) {
    blocked_ = 0;
  }
  if (state == CollectiveState::awaited) c.awaited = steady_now();
  if (state == CollectiveState::done) c.ended = steady_now();
}

Collective FlightRecorder::at(uint64_t ticket) const {
  const std::lock_guard lock(mutex_);
  return entry(ticket).named();
}

uint64_t FlightRecorder::next_sequence(uint8_t communicator) const {
  const std::lock_guard lock(mutex_);
  return sequences_[communicator] + 1;
}

void FlightRecorder::begin(std::string_view activity) {
  const std::lock_guard lock(mutex_);
  copy_text(activity, activity_);
  active_since_ = steady_now();
}

void FlightRecorder::pause() {
  const std::lock_guard lock(mutex_);
  active_since_ = 0;
}

FlightRecord FlightRecorder::snapshot() const {
  const std::lock_guard lock(mutex_);
  FlightRecord record;
  record.now = steady_now();
  record.unix_time =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  record.activity = activity_.data();
  record.active_since = active_since_;
  record.communicators = communicators_;
  const uint64_t kept = std::min<uint64_t>(begun_, ring_.size());
  record.collectives.reserve(kept);
  for (uint64_t n = begun_ - kept; n < begun_; ++n) {
    record.collectives.push_back(ring_[n % ring_.size()].named());
  }
  return record;
}

FlightRecorder::Status FlightRecorder::status() const {
  const std::lock_guard lock(mutex_);
  Status status{.now = steady_now(),
                .paused = active_since_ == 0,
                .active_since = active_since_,
                .blocked = blocked_ != 0,
                .collective = {}};
  if (blocked_) status.collective = entry(blocked_).named();
  return status;
}

}  // namespace supra
