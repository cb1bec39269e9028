#pragma once
// The watchdog of the whole run: a thread of rank 0 that all ranks are connected to. It hears their
// alarms, notices those that are gone, gathers the records, says once what they show, and ends all.

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/watch/connection.h"
#include "parallel/watch/diagnosis.h"

namespace supra {

struct HubOptions {
  std::string run_folder;
  std::string host;  ///< of rank 0
  int ranks = 1;
  Token token{};
  std::chrono::milliseconds silence{0};  ///< after which a rank is given up; 0: never
};

class Hub {
 public:
  /// `first` is the connection of rank 0 itself; the others come through `listener`.
  Hub(HubOptions options, Descriptor first, std::optional<Listener> listener);
  /// Waits for the other ranks to leave, for a bounded time.
  ~Hub();
  Hub(const Hub&) = delete;
  Hub& operator=(const Hub&) = delete;

 private:
  using Time = std::chrono::steady_clock::time_point;

  static constexpr const char* unknown_host = "unknown host";  ///< of a rank that is not there yet

  struct Peer {
    std::optional<Connection> connection;
    std::string host = unknown_host;
    Presence presence = Presence::silent;  ///< until it is connected
    Time heard{};
    bool failed = false;  ///< has asked for an explanation: will end by an error
    std::optional<FlightRecord> record;
    bool written = false;
  };
  struct Stranger {
    Connection connection;
    Time since;
  };
  /// Why records are gathered.
  struct Incident {
    std::string cause;
    bool fatal = false;  ///< the run ends now; otherwise somebody else will end it
    Time began{};
  };
  /// A rank is gone, and with it the run: others see to its end, or this one does in time.
  struct ExpectedEnd {
    std::string cause;
    Time deadline{};
  };

  void run();
  void wait_for_events();
  void admit();
  bool has_room() const;
  bool introduce(Stranger& stranger);
  void hear(int rank);
  void handle(int rank, const Message& message);
  void check_presence();
  void expect_end(const std::string& cause, std::chrono::milliseconds within);
  void begin_incident(const std::string& cause, bool fatal);
  void go_on_with_incident();
  void explain();
  [[noreturn]] void end_all(const std::string& cause);
  std::vector<RankView> views() const;
  void blame(const std::vector<RankView>& ranks) const;
  void send_to_all(MessageKind kind);
  bool anyone_connected() const;
  std::string name(int rank) const;

  HubOptions options_;
  std::optional<Listener> listener_;
  std::vector<Stranger> strangers_;
  std::vector<Peer> peers_;
  std::optional<Incident> incident_;
  std::optional<ExpectedEnd> expected_end_;
  double stopped_seconds_ = 0;  ///< for which this process did not run
  Time now_{}, heartbeat_{};
  Bell bell_;
  std::atomic<bool> leaving_ = false;
  std::thread thread_;
};

}  // namespace supra
