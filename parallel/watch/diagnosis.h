#pragma once
// What the rings of all ranks say about why a run does not go on: who is gone, the first collective
// of each communicator at which the ranks differ, and who waits where.

#include <string>
#include <vector>

#include "parallel/watch/flight_recorder.h"

namespace supra {

enum class Presence : uint8_t {
  answers,  ///< and has sent its record
  left,     ///< has ended in good order
  ended,    ///< its connection was closed without a word: killed, or crashed
  silent,   ///< the connection stands, but nothing comes
};

/// A rank as the others see it.
struct RankView {
  int rank = 0;
  std::string host;
  Presence presence = Presence::answers;
  double quiet_seconds = 0;  ///< since it was last heard of
  FlightRecord record;       ///< of one that answers
};

struct Diagnosis {
  std::vector<std::string> absent;   ///< ranks that are gone
  std::vector<std::string> differ;   ///< ranks that made another call than the others
  std::vector<std::string> missing;  ///< ranks that have not come to a call where others wait
  std::vector<std::string> waiting;  ///< where ranks are, when none of the above says it

  /// All of them, in this order.
  std::vector<std::string> lines() const;
};

/// `ranks` ascend.
Diagnosis diagnose(const std::vector<RankView>& ranks);

/// "ranks 0-2, 5"; "rank 3" of one.
std::string name_ranks(const std::vector<int>& ranks);
/// "rank 3 (n2)"
std::string name_rank(int rank, const std::string& host);

}  // namespace supra
