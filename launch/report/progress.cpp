#include "launch/report/progress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <ostream>
#include <string_view>
#include <sys/ioctl.h>
#include <unistd.h>

#include <fmt/format.h>

namespace supra {
namespace {

constexpr std::string_view clear_line = "\r\x1b[K";

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : fd_(open(path.c_str(), O_WRONLY | O_NOCTTY)) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

Terminal terminal_of(int fd) {
  const char* term = std::getenv("TERM");
  Terminal terminal;
  terminal.interactive = isatty(fd) == 1 && term != nullptr && std::string_view(term) != "dumb";
  winsize size{};
  if (terminal.interactive && ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    terminal.columns = size.ws_col;
  }
  const char* no_colour = std::getenv("NO_COLOR");
  terminal.colour = terminal.interactive && (no_colour == nullptr || *no_colour == '\0');
  return terminal;
}

}  // namespace

Terminal find_terminal() {
  if (std::getenv("OMPI_COMM_WORLD_RANK") == nullptr) return terminal_of(STDOUT_FILENO);
  return terminal_of(Descriptor(fmt::format("/proc/{}/fd/1", getppid())).get());
}

std::string format_duration(double seconds) {
  const int64_t s = std::llround(seconds);
  const int64_t days = s / 86400, hours = s / 3600 % 24, minutes = s / 60 % 60;
  if (days > 0) return fmt::format("{}d {:02}:{:02}:{:02}", days, hours, minutes, s % 60);
  return fmt::format("{}:{:02}:{:02}", hours, minutes, s % 60);
}

std::function<void(int64_t done, int64_t total)> show_percent(const std::string& what) {
  if (!find_terminal().interactive) return [](int64_t, int64_t) {};
  return [what, shown = int64_t{-1}](int64_t done, int64_t total) mutable {
    const int64_t percent =
        static_cast<int64_t>(100 * static_cast<double>(done) / static_cast<double>(total));
    if (percent == shown) return;
    shown = percent;
    fmt::print("\r{} {:3}%", what, percent);
    if (done == total) fmt::print("{}", clear_line);
    std::fflush(stdout);
  };
}

Progress::~Progress() {
  if (bar_shown_) out_ << clear_line << std::flush;
}

void Progress::start(int64_t done, int64_t steps) {
  done_ = done;
  steps_ = steps;
  skip_time();
}

void Progress::advance() {
  const Clock::time_point now = Clock::now();
  timed_seconds_ += std::chrono::duration<double>(now - last_).count();
  last_ = now;
  ++timed_steps_;
  ++done_;
}

double Progress::seconds_left() const {
  if (timed_steps_ == 0) return -1;
  return timed_seconds_ / static_cast<double>(timed_steps_) * static_cast<double>(steps_ - done_);
}

std::string Progress::bar() const {
  const double fraction = static_cast<double>(done_) / static_cast<double>(steps_);
  const std::string left =
      timed_steps_ == 0 ? "" : fmt::format("  {} left", format_duration(seconds_left()));
  const std::string label = fmt::format(" {:3.0f}%  {}/{}{}", 100 * fraction, done_, steps_, left);
  // The last column stays empty: writing into it makes some terminals wrap.
  const int room = std::min(terminal_.columns, 100) - 3 - static_cast<int>(label.size());
  const int width = std::max(room, 0);
  const int filled = std::clamp(static_cast<int>(fraction * width), 0, width);
  const std::string_view on = terminal_.colour ? "\x1b[32m" : "";
  const std::string_view off = terminal_.colour ? "\x1b[0m" : "";
  return fmt::format("[{}{:=<{}}{}{:{}}]{}", on, "", filled, off, "", width - filled, label);
}

void Progress::line(const std::string& text) {
  if (!terminal_.interactive) {
    out_ << text << std::endl;
    return;
  }
  out_ << clear_line << text << '\n';
  bar_shown_ = steps_ > 0;
  if (bar_shown_) out_ << bar();
  out_.flush();
}

}  // namespace supra
