#pragma once
// The watchdog of one rank: a thread that looks at its own record, raises the alarm when a limit is
// exceeded, and does as the hub says. When the hub is gone it ends this rank by itself.

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "parallel/watch/connection.h"
#include "parallel/watch/flight_recorder.h"

namespace supra {

struct MemberOptions {
  std::string run_folder;
  int rank = 0, ranks = 1;
  std::string host, hub_host;
  Token token{};
  std::chrono::seconds step_timeout{0}, collective_timeout{0};
  std::chrono::milliseconds silence{0};  ///< of the hub, after which it is given up; 0: never
};

/// Introduces itself to the hub at the other end, which must answer in time.
Connection introduce_to_hub(Descriptor socket, const Hello& hello);

class Member {
 public:
  Member(MemberOptions options, Connection hub, const FlightRecorder& recorder);
  /// Says goodbye: this rank ends in good order.
  ~Member();
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  /// Asks the hub how the ranks' calls differ. Empty: they do not, or it does not answer.
  std::string explain();

 private:
  using Time = std::chrono::steady_clock::time_point;

  void run();
  void handle(const Message& message);
  void check_limits();
  void check_hub();
  /// Whether the rank is in something for longer than it may; says what.
  std::optional<std::string> exceeded() const;
  [[noreturn]] void end_alone(const std::string& reason);
  std::string write_own_record() const;

  const MemberOptions options_;
  Connection hub_;
  const FlightRecorder& recorder_;
  Bell bell_;

  // Of the thread alone.
  Time now_{}, heard_{}, heartbeat_{}, closed_{}, alarmed_{}, told_{};
  int64_t resumed_ = 0;  ///< when the process last went on after it had been stopped
  std::string alarm_;    ///< what was exceeded; empty: nothing
  bool hub_left_ = false;

  std::mutex mutex_;
  std::condition_variable explained_;
  bool leaving_ = false, explain_ = false;
  std::optional<std::string> explanation_;

  std::thread thread_;
};

}  // namespace supra
