#include "parallel/preflight/measure_links.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

namespace supra {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t smallest = sizeof(uint64_t), first_large = size_t{64} << 10;
constexpr BoundedMessages::Seconds exchange_limit{10};

/// Word i of what a rank sends; in place of word 0 goes the size of the exchange to come.
uint64_t word(int rank, size_t i) {
  return ((i + 1) * 0x9E3779B97F4A7C15u) ^ (static_cast<uint64_t>(rank + 1) * 0xD1B54A32D192ED03u);
}

void fill(std::byte* bytes, int rank) {
  for (size_t i = 0; i < largest_exchange / smallest; ++i) {
    const uint64_t w = word(rank, i);
    std::memcpy(bytes + i * smallest, &w, smallest);
  }
}

bool is_from(const std::byte* bytes, size_t size, int rank) {
  for (size_t i = 1; i < size / smallest; ++i) {
    const uint64_t w = word(rank, i);
    if (std::memcmp(bytes + i * smallest, &w, smallest) != 0) return false;
  }
  return true;
}

/// Decides, for one of two ends, what the exchanges are, by how long they take: first the smallest,
/// again and again, then larger and larger ones.
class Schedule {
 public:
  explicit Schedule(double seconds) : seconds_(seconds), began_(Clock::now()) {}

  /// The size that follows one of `bytes` which took `seconds`; 0: enough.
  size_t next(size_t bytes, double seconds) {
    const double elapsed = std::chrono::duration<double>(Clock::now() - began_).count();
    if (bytes == smallest) {
      latencies_.push_back(seconds);
      const bool enough = latencies_.size() >= most_small || elapsed > seconds_ / 4;
      return enough && latencies_.size() >= fewest_small ? first_large : smallest;
    }
    // Only the largest count: small ones may fit into what a slow network takes at once.
    if (bytes > largest_) rate_ = 0;
    largest_ = std::max(largest_, bytes);
    rate_ = std::max(rate_, static_cast<double>(bytes) / seconds);
    if (elapsed + seconds > seconds_) return 0;
    return elapsed + 4 * seconds > seconds_ ? bytes : std::min(4 * bytes, largest_exchange);
  }
  void write(Link& link) {
    const auto middle = latencies_.begin() + static_cast<std::ptrdiff_t>(latencies_.size() / 2);
    std::nth_element(latencies_.begin(), middle, latencies_.end());
    link.latency = *middle;
    link.rate = rate_;
  }

 private:
  // The first makes the connection.
  static constexpr size_t fewest_small = 5, most_small = 500;

  double seconds_;
  Clock::time_point began_;
  std::vector<double> latencies_;
  size_t largest_ = 0;
  double rate_ = 0;
};

/// Both ends of a link make the same exchanges: the lower rank decides on their sizes, and says in
/// each what the next one is.
void measure_link(int peer, double seconds, BoundedMessages& messages, Link& link) {
  const bool leads = messages.rank() < peer;
  Schedule schedule(seconds);
  size_t bytes = smallest, next = smallest, largest = 0;
  while (bytes > 0) {
    std::memcpy(messages.outgoing(), &next, sizeof(next));
    const auto began = Clock::now();
    if (!messages.exchange(peer, bytes, exchange_limit)) {
      link.state = LinkState::silent;
      return;
    }
    const std::chrono::duration<double> took = Clock::now() - began;
    largest = std::max(largest, bytes);
    if (leads) {
      const size_t after_next = schedule.next(bytes, took.count());
      bytes = std::exchange(next, after_next);
    } else {
      std::memcpy(&bytes, messages.incoming(), sizeof(bytes));
      if (bytes > largest_exchange) break;
    }
  }
  if (leads) schedule.write(link);
  if (bytes > 0 || !is_from(messages.incoming(), largest, peer)) link.state = LinkState::corrupt;
}

/// What both ends say of each link.
std::vector<Link> join(const std::vector<Link>& halves) {
  std::map<std::pair<int, int>, Link> joined;
  for (const Link& half : halves) {
    if (half.a == half.b) continue;  // of a round without an opponent
    Link& link = joined.try_emplace({half.a, half.b}, half).first->second;
    if (half.rate > 0) {
      link.rate = half.rate;
      link.latency = half.latency;
    }
    link.state = std::max(link.state, half.state);
  }
  std::vector<Link> links;
  for (const auto& [ends, link] : joined) links.push_back(link);
  return links;
}

}  // namespace

int tournament_rounds(int players) {
  return players < 2 ? 0 : players + players % 2 - 1;
}

std::optional<int> tournament_opponent(int players, int player, int round) {
  // The circle method: with an odd number m of rounds, i meets j where i + j = round modulo m; the
  // last of an even number of players meets whoever would meet himself.
  const int rounds = tournament_rounds(players);
  const int alone = round * (rounds + 1) / 2 % rounds;
  const bool even = players == rounds + 1;
  if (even && player == rounds) return alone;
  if (player != alone) return (round - player + rounds) % rounds;
  if (even) return rounds;
  return std::nullopt;
}

std::vector<Link> measure_links(const std::vector<int>& ends, double seconds,
                                BoundedMessages& messages) {
  const int players = static_cast<int>(ends.size()), rounds = tournament_rounds(players);
  const auto found = std::find(ends.begin(), ends.end(), messages.rank());
  const int me = static_cast<int>(found - ends.begin());
  std::vector<Link> mine(static_cast<size_t>(rounds));
  fill(messages.outgoing(), messages.rank());
  for (int round = 0; round < rounds; ++round) {
    messages.barrier();
    const auto opponent = me < players ? tournament_opponent(players, me, round) : std::nullopt;
    if (!opponent) continue;
    Link& link = mine[static_cast<size_t>(round)];
    link.a = std::min(me, *opponent);
    link.b = std::max(me, *opponent);
    measure_link(ends[static_cast<size_t>(*opponent)], seconds / rounds, messages, link);
  }
  return join(messages.gather(mine));
}

}  // namespace supra
