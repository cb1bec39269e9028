#pragma once
// Where the time of a step goes: a stopwatch with one counter a phase, of which one runs at any
// time. It reads the host's time, or a device's where ops run later than they are issued.

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

namespace supra {

enum class Phase : uint8_t {
  data,
  gather,
  forward,
  backward,
  reduce,
  optimizer,
  checkpoint,
  other
};
inline constexpr int phases = 8;

constexpr std::string_view name_of(Phase p) {
  switch (p) {
    case Phase::data:
      return "data";
    case Phase::gather:
      return "gather";
    case Phase::forward:
      return "forward";
    case Phase::backward:
      return "backward";
    case Phase::reduce:
      return "reduce";
    case Phase::optimizer:
      return "optimizer";
    case Phase::checkpoint:
      return "checkpoint";
    case Phase::other:
      return "other";
  }
  return "?";
}

/// Seconds of each phase.
using PhaseSeconds = std::array<double, phases>;

/// A device's own time.
class Timeline {
 public:
  virtual ~Timeline() = default;
  /// Notes when the device comes to this point of its work. Does not throw.
  virtual void mark() = 0;
  /// The seconds between one mark and the next, for those the device has come to since the last
  /// call, in their order. Does not wait.
  virtual std::vector<double> take() = 0;
};

class PhaseClock {
 public:
  /// Without a timeline, of the host.
  explicit PhaseClock(std::unique_ptr<Timeline> timeline = nullptr)
      : timeline_(std::move(timeline)) {
    if (timeline_) timeline_->mark();
  }

  /// Stops the running phase and starts another; returns the one stopped.
  Phase enter(Phase next) {
    if (timeline_) {
      timeline_->mark();
      marked_.push_back(running_);
    } else {
      const auto now = Clock::now();
      count(running_, std::chrono::duration<double>(now - since_).count());
      since_ = now;
    }
    return std::exchange(running_, next);
  }
  /// What has been counted since the last call; of a device, as far as it has come.
  PhaseSeconds take() {
    enter(running_);
    if (timeline_) {
      for (const double seconds : timeline_->take()) {
        count(marked_.front(), seconds);
        marked_.pop_front();
      }
    }
    return std::exchange(seconds_, PhaseSeconds{});
  }

  /// Times a scope as one phase, then goes on with the phase before it.
  class Span {
   public:
    Span(PhaseClock& clock, Phase phase) : clock_(clock), before_(clock.enter(phase)) {}
    ~Span() { clock_.enter(before_); }
    Span(const Span&) = delete;
    Span& operator=(const Span&) = delete;

   private:
    PhaseClock& clock_;
    Phase before_;
  };

 private:
  using Clock = std::chrono::steady_clock;
  void count(Phase phase, double seconds) { seconds_[static_cast<size_t>(phase)] += seconds; }

  std::unique_ptr<Timeline> timeline_;
  std::deque<Phase> marked_;  ///< what ran between two marks the device has yet to come to
  PhaseSeconds seconds_{};
  Phase running_ = Phase::other;
  Clock::time_point since_ = Clock::now();
};

}  // namespace supra
