#pragma once
// What a run shows while it goes: one line a step and, on a terminal, a bar with the time left that
// is redrawn in place below them. Anything but a terminal receives plain lines only.

#include <chrono>
#include <functional>
#include <iosfwd>
#include <string>

namespace supra {

struct Terminal {
  bool interactive = false;
  int columns = 80;  ///< of an interactive terminal; lines are made to fit
  bool colour = false;
};

/// What this process's standard output ends in. Under mpirun, that is where mpirun's own output
/// goes: it gives its ranks pseudo-terminals even when it writes to a file. Colour is off with
/// NO_COLOR set.
Terminal find_terminal();

/// "0:12:33", with days in front from the first on: "2d 03:00:00".
std::string format_duration(double seconds);

/// Shows on a terminal, and nowhere else, how far a single long piece of work is: "importing  42%",
/// which goes when all is done.
std::function<void(int64_t done, int64_t total)> show_percent(const std::string& what);

class Progress {
 public:
  Progress(std::ostream& out, Terminal terminal) : out_(out), terminal_(terminal) {}
  /// Takes the bar away.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  const Terminal& terminal() const { return terminal_; }

  /// Begins the count of `steps` steps of which `done` are done before.
  void start(int64_t done, int64_t steps);
  /// Seconds the rest will take at the mean pace of the steps seen so far; negative before the
  /// first.
  double seconds_left() const;
  /// Counts one step; the bar shows it with the next line.
  void advance();
  /// The time until now belongs to no step.
  void skip_time() { last_ = Clock::now(); }
  /// Writes a line of text, above the bar.
  void line(const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;

  std::string bar() const;

  std::ostream& out_;
  Terminal terminal_;
  int64_t done_ = 0, steps_ = 0;
  int64_t timed_steps_ = 0;
  double timed_seconds_ = 0;
  Clock::time_point last_ = Clock::now();
  bool bar_shown_ = false;
};

}  // namespace supra
