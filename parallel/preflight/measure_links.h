#pragma once
// Latency and bandwidth between every two of some ranks, as in a tournament: in each round every
// rank has another opponent, so that disjoint links are measured at once and no two share an end.

#include <optional>
#include <vector>

#include "parallel/preflight/bounded_messages.h"
#include "parallel/preflight/node_report.h"

namespace supra {

/// Rounds in which each of `players` meets each other once.
int tournament_rounds(int players);
/// Whom a player meets in a round; nobody, once, when the players are odd in number.
std::optional<int> tournament_opponent(int players, int player, int round);

/// Collective, over all ranks; `ends` are those that are measured, for about `seconds` in all. On
/// rank 0 the links, elsewhere nothing.
std::vector<Link> measure_links(const std::vector<int>& ends, double seconds,
                                BoundedMessages& messages);

/// Bytes that the messages must hold.
inline constexpr size_t largest_exchange = size_t{8} << 20;

}  // namespace supra
