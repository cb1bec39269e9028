#pragma once
// Where the time of a step goes: a stopwatch with one counter a phase, of which one runs at any
// time.

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>
#include <utility>

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

class PhaseClock {
 public:
  /// Stops the running phase and starts another; returns the one stopped.
  Phase enter(Phase next) {
    const auto now = Clock::now();
    seconds_[static_cast<size_t>(running_)] += std::chrono::duration<double>(now - since_).count();
    since_ = now;
    return std::exchange(running_, next);
  }
  /// What has been counted since the last call.
  PhaseSeconds take() {
    enter(running_);
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
  PhaseSeconds seconds_{};
  Phase running_ = Phase::other;
  Clock::time_point since_ = Clock::now();
};

}  // namespace supra
