#include "parallel/watch/watchdog.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <sys/random.h>
#include <sys/socket.h>
#include <vector>

#include "parallel/hosts.h"
#include "parallel/watch/connection.h"
#include "parallel/watch/fault.h"
#include "parallel/watch/flight_recorder.h"
#include "parallel/watch/hub.h"
#include "parallel/watch/member.h"
#include "parallel/watch/patience.h"
#include "parallel/watch/recording_communicator.h"

namespace supra {
namespace {

/// Where rank 0 listens, as it tells the others.
struct Meeting {
  Token token{};
  std::array<char, 256> host{};
  std::array<uint32_t, 32> addresses{};
  uint32_t address_count = 0;
  uint16_t port = 0;
};

bool is_loopback(uint32_t address) {
  return reinterpret_cast<const uint8_t*>(&address)[0] == 127;
}

/// Those of rank 0's addresses that may be it, seen from `host`: loopback only on its own host.
std::vector<uint32_t> addresses_to_try(const Meeting& meeting, const std::string& host) {
  std::vector<uint32_t> addresses(meeting.addresses.begin(),
                                  meeting.addresses.begin() + meeting.address_count);
  const bool own = host == meeting.host.data();
  const auto away = std::stable_partition(addresses.begin(), addresses.end(),
                                          [&](uint32_t a) { return is_loopback(a) == own; });
  if (!own && away != addresses.begin()) addresses.erase(away, addresses.end());
  return addresses;
}

Connection connect_to_hub(const Meeting& meeting, const Hello& hello) {
  const auto deadline = std::chrono::steady_clock::now() + patience::meet;
  std::vector<std::string> tried;
  for (const uint32_t address : addresses_to_try(meeting, hello.host)) {
    const std::string place = fmt::format("{}:{}", to_string_address(address), meeting.port);
    if (std::chrono::steady_clock::now() > deadline) break;
    Descriptor socket = connect_to(address, meeting.port, patience::connect);
    if (!socket) {
      tried.push_back(fmt::format("{}: {}", place, std::strerror(errno)));
      continue;
    }
    try {
      return introduce_to_hub(std::move(socket), hello);
    } catch (const Error& e) {
      tried.push_back(fmt::format("{}: {}", place, e.what()));
    }
  }
  fail_internal(
      "the watchdog on {} cannot reach that of rank 0 on {} by TCP ({}); let hosts of a run "
      "connect "
      "to each other, or set watch.step_timeout and watch.collective_timeout to 0",
      hello.host, meeting.host.data(), fmt::join(tried, "; "));
}

}  // namespace

struct Watchdog::State {
  State(const WatchdogOptions& watchdog, Communicator& host) : options(watchdog) {
    together(host, [&] {
      fault = fault_of_environment();
      if (fault && fault->rank != host.rank()) fault.reset();
    });
    if (options.step_timeout.count() == 0 && options.collective_timeout.count() == 0) return;

    const std::string name = host_name();
    Meeting meeting;
    std::optional<Listener> listener;
    Descriptor here, there;  // rank 0 needs no network to reach itself
    together(host, [&] {
      if (host.rank() != 0) return;
      SUPRA_CHECK(::getrandom(meeting.token.data(), meeting.token.size(), 0) ==
                      static_cast<ssize_t>(meeting.token.size()),
                  "getrandom failed: {}", std::strerror(errno));
      name.copy(meeting.host.data(), meeting.host.size() - 1);
      int pair[2];
      SUPRA_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0,
                  "socketpair failed: {}", std::strerror(errno));
      here = Descriptor(pair[0]);
      there = Descriptor(pair[1]);
      if (host.size() == 1) return;
      listener.emplace();
      meeting.port = listener->port;
      const std::vector<uint32_t> addresses = own_addresses();
      meeting.address_count =
          static_cast<uint32_t>(std::min(addresses.size(), meeting.addresses.size()));
      std::copy_n(addresses.begin(), meeting.address_count, meeting.addresses.begin());
    });
    host.broadcast_host(&meeting, sizeof(meeting), 0);
    if (host.rank() == 0) {
      hub = std::make_unique<Hub>(HubOptions{.run_folder = options.run_folder,
                                             .host = name,
                                             .ranks = host.size(),
                                             .token = meeting.token,
                                             .silence = silence()},
                                  std::move(there), std::move(listener));
    }
    together(host, [&] {
      const Hello hello{.token = meeting.token, .rank = host.rank(), .host = name};
      member =
          std::make_unique<Member>(MemberOptions{.run_folder = options.run_folder,
                                                 .rank = host.rank(),
                                                 .ranks = host.size(),
                                                 .host = name,
                                                 .hub_host = meeting.host.data(),
                                                 .step_timeout = options.step_timeout,
                                                 .collective_timeout = options.collective_timeout,
                                                 .silence = silence()},
                                   host.rank() == 0 ? introduce_to_hub(std::move(here), hello)
                                                    : connect_to_hub(meeting, hello),
                                   recorder);
    });
  }

  /// A rank that nothing is heard of for longer than a collective may take is lost.
  std::chrono::milliseconds silence() const {
    if (options.collective_timeout.count() == 0) return {};
    return std::max<std::chrono::milliseconds>(patience::silence, options.collective_timeout);
  }

  WatchdogOptions options;
  std::optional<Fault> fault;
  FlightRecorder recorder;
  std::unique_ptr<Hub> hub;        ///< of rank 0
  std::unique_ptr<Member> member;  ///< leaves before the hub does
};

Watchdog::Watchdog(const WatchdogOptions& options, Communicator& host)
    : state_(std::make_unique<State>(options, host)) {}

Watchdog::~Watchdog() = default;

std::unique_ptr<Communicator> Watchdog::watch(std::unique_ptr<Communicator> inner,
                                              std::string name) {
  return make_recording_communicator(std::move(inner), std::move(name), state_->recorder,
                                     state_->options.check_collectives, state_->fault);
}

void Watchdog::begin(std::string_view what) {
  state_->recorder.begin(what);
}

void Watchdog::pause() {
  state_->recorder.pause();
}

std::string Watchdog::explain() {
  return state_->member ? state_->member->explain() : std::string();
}

}  // namespace supra
