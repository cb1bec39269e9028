#pragma once
// What a preflight measures of the hosts of a job, and what it concludes: which hosts are so slow,
// or so wrong, that the job should go without them. judge() is a function of the numbers alone.

#include <cstdint>
#include <string>
#include <vector>

namespace supra {

/// Of one rank, while all others measured the same.
struct RankMeasures {
  int host = 0;                 ///< index into NodeReport::hosts
  double product_rate = 0;      ///< floating-point operations a second
  double memory_rate = 0;       ///< bytes a second
  double memory_available = 0;  ///< bytes that its device can still give
  bool exact = true;            ///< products and sums of integers came out right
};

struct HostMeasures {
  std::string name = {};
  bool disk_measured = false;
  double disk_rate = 0;         ///< bytes a second, written and synced
  double sync_seconds = 0;      ///< of a small write and its sync
  std::string disk_fault = {};  ///< why the disk could not be measured; empty: it could
};

enum class LinkState : uint8_t {
  measured,
  silent,   ///< a message did not arrive in time
  corrupt,  ///< other bytes arrived than were sent
};

/// Between two ends, indices into NodeReport::ends.
struct Link {
  int a = 0, b = 0;
  double latency = 0;  ///< seconds of an exchange of a few bytes
  double rate = 0;     ///< bytes a second each way, while both ends send
  LinkState state = LinkState::measured;
};

struct NodeReport {
  std::vector<RankMeasures> ranks;
  std::vector<HostMeasures> hosts;
  /// The ranks between which links are measured: the first of each host, or, on a single host,
  /// all.
  std::vector<int> ends;
  std::vector<Link> links;  ///< one for each two ends

  /// "n3", or "rank 3" on a single host.
  std::string name_of_end(int end) const;
};

/// The least share of the median that passes.
struct NodeTolerances {
  double steady = 0.7;  ///< products, memory, bandwidth
  double varied = 0.3;  ///< disks and latencies, which vary by their nature
};

struct Blame {
  int host = 0;
  std::string reason;
};

struct Verdict {
  std::vector<Blame> blamed;         ///< one for each host to leave out, in the order of hosts
  std::vector<std::string> remarks;  ///< what is worth knowing and no host's fault
};

/// A rank or host is slow beside the median over all; of an even number of values the median is the
/// upper one of the middle two, so that of two hosts the slower can be named. A link is slow beside
/// the median over ends of their best link; on a single host, where links are memory, none is.
/// Links that are slow, silent or corrupt are explained by
/// as few ends as possible: an end is blamed while most of its links with unblamed ends are bad.
/// Bad links that no end explains: a slow one is a remark, of a silent or corrupt one both ends are
/// blamed.
Verdict judge(const NodeReport& report, const NodeTolerances& tolerances);

}  // namespace supra
