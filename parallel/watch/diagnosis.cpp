#include "parallel/watch/diagnosis.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <fmt/format.h>

namespace supra {
namespace {

/// A communicator's calls as one rank recorded them: those of numbers first ... first + size - 1.
struct Calls {
  const RankView* rank;
  std::vector<const Collective*> calls;

  uint64_t first() const { return calls.empty() ? 1 : calls.front()->sequence; }
  uint64_t last() const { return calls.empty() ? 0 : calls.back()->sequence; }
  const Collective* at(uint64_t n) const {
    return n < first() || n > last() ? nullptr : calls[n - first()];
  }
};

std::string name_of(const RankView& rank) {
  return name_rank(rank.rank, rank.host);
}

std::vector<Calls> calls_of(const std::string& communicator, const std::vector<RankView>& ranks) {
  std::vector<Calls> all;
  for (const RankView& rank : ranks) {
    if (rank.presence != Presence::answers) continue;
    Calls mine{&rank, {}};
    for (const Collective& c : rank.record.collectives) {
      if (rank.record.communicators[c.communicator] == communicator) mine.calls.push_back(&c);
    }
    all.push_back(std::move(mine));
  }
  return all;
}

const Collective* blocked_in(const FlightRecord& record) {
  const auto& all = record.collectives;
  const auto found =
      std::find_if(all.rbegin(), all.rend(), [](const auto& c) { return c.blocks(); });
  return found == all.rend() ? nullptr : &*found;
}

std::string on(const FlightRecord& record, const Collective& c) {
  return fmt::format("{} ({})", c.name(), record.communicators[c.communicator]);
}

std::string describe_activity(const FlightRecord& record) {
  if (record.activity.empty()) return "it has not begun its first step";
  if (record.active_since == 0) return fmt::format("its last work was {}", record.activity);
  return fmt::format("it has been in {} for {:.1f} s", record.activity,
                     record.seconds_since(record.active_since));
}

/// Where a rank is: the collective it waits in, or what it computes.
std::string describe_place(const FlightRecord& record) {
  if (const Collective* c = blocked_in(record)) {
    return fmt::format("it waits in {} for {:.1f} s", on(record, *c),
                       record.seconds_since(c->blocked_since()));
  }
  std::string text = describe_activity(record) + ", in no collective";
  if (!record.collectives.empty()) {
    const Collective& last = record.collectives.back();
    text += last.state == CollectiveState::done
                ? fmt::format("; its last, {}, was done {:.1f} s ago", on(record, last),
                              record.seconds_since(last.ended))
                : fmt::format("; its last, {}, began {:.1f} s ago", on(record, last),
                              record.seconds_since(last.begun));
  }
  return text;
}

std::vector<int> numbers(const std::vector<const Calls*>& group) {
  std::vector<int> ranks;
  for (const Calls* c : group) ranks.push_back(c->rank->rank);
  return ranks;
}

/// For how many of the next calls `late` at n + 1, n + 2, ... equals `early` at n, n + 1, ...
int shifted(const Calls& early, const Calls& late, uint64_t n) {
  int same = 0;
  for (; same < 64; ++same, ++n) {
    const Collective *a = early.at(n), *b = late.at(n + 1);
    if (!a || !b || !a->same_call(*b)) break;
  }
  return same;
}

/// What each rank made of call n, those that made the same call together.
std::vector<std::vector<const Calls*>> group_by_call(const std::vector<Calls>& all, uint64_t n) {
  std::vector<std::vector<const Calls*>> groups;
  for (const Calls& mine : all) {
    const Collective* const c = mine.at(n);
    if (!c) continue;
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const auto& group) {
      return group[0]->at(n)->same_call(*c);
    });
    if (same == groups.end()) {
      groups.push_back({&mine});
    } else {
      same->push_back(&mine);
    }
  }
  return groups;
}

std::string have(size_t ranks) {
  return ranks == 1 ? "has" : "have";
}

/// Different calls under one number. The majority is right; where there is none, what comes after
/// may tell who left one out.
void describe_difference(const std::vector<std::vector<const Calls*>>& groups, uint64_t n,
                         std::vector<std::string>& lines) {
  const auto smaller = [](const auto& a, const auto& b) { return a.size() < b.size(); };
  auto right = std::max_element(groups.begin(), groups.end(), smaller);
  bool sure = std::count_if(groups.begin(), groups.end(),
                            [&](const auto& group) { return group.size() == right->size(); }) == 1;
  if (!sure && groups.size() == 2) {
    const int second_left_out = shifted(*groups[1][0], *groups[0][0], n);
    const int first_left_out = shifted(*groups[0][0], *groups[1][0], n);
    sure = first_left_out != second_left_out;
    right = groups.begin() + (first_left_out > second_left_out ? 1 : 0);
  }
  const FlightRecord& record = (*right)[0]->rank->record;
  const Collective& expected = *(*right)[0]->at(n);
  for (auto group = groups.begin(); group != groups.end(); ++group) {
    if (group == right) continue;
    const std::string they =
        group->size() == 1 ? name_of(*(*group)[0]->rank) : name_ranks(numbers(*group));
    const std::string made = (*group)[0]->at(n)->call();
    lines.push_back(sure ? fmt::format("{} {} not entered {}, as {} {}, but made {} in its place",
                                       they, have(group->size()), on(record, expected),
                                       name_ranks(numbers(*right)), have(right->size()), made)
                         : fmt::format("call #{} of {} is {} on {}, and {} on {}", n,
                                       record.communicators[expected.communicator], expected.call(),
                                       name_ranks(numbers(*right)), made, they));
  }
}

/// Ranks that have not come to call n, which others have begun.
void describe_missing(const std::vector<Calls>& all, uint64_t n, std::vector<std::string>& lines) {
  std::vector<const Calls*> present;
  const Collective* longest = nullptr;
  const FlightRecord* record = nullptr;
  for (const Calls& mine : all) {
    const Collective* const c = mine.at(n);
    if (!c) continue;
    present.push_back(&mine);
    if (longest &&
        mine.rank->record.seconds_since(c->begun) <= record->seconds_since(longest->begun))
      continue;
    longest = c;
    record = &mine.rank->record;
  }
  for (const Calls& mine : all) {
    if (mine.last() >= n) continue;
    lines.push_back(fmt::format("{} has not entered {}, which {} entered {:.1f} s ago: {}",
                                name_of(*mine.rank), on(*record, *longest),
                                name_ranks(numbers(present)), record->seconds_since(longest->begun),
                                describe_place(mine.rank->record)));
  }
}

/// The first number at which the calls differ, or some rank's calls end.
void compare(const std::vector<Calls>& all, Diagnosis& diagnosis) {
  uint64_t first = 1, last = 0;
  for (const Calls& mine : all) {
    first = std::max(first, mine.first());
    last = std::max(last, mine.last());
  }
  for (uint64_t n = first; n <= last; ++n) {
    const auto groups = group_by_call(all, n);
    if (groups.size() > 1) return describe_difference(groups, n, diagnosis.differ);
    if (!groups.empty() && groups[0].size() < all.size())
      return describe_missing(all, n, diagnosis.missing);
  }
}

/// Ranks that are at the same place are named together.
void describe_places(const std::vector<RankView>& ranks, std::vector<std::string>& lines) {
  struct Waiting {
    std::vector<int> ranks;
    double seconds = 0;
  };
  std::map<std::string, Waiting> waiting;
  size_t answering = 0;
  for (const RankView& rank : ranks) {
    if (rank.presence != Presence::answers) continue;
    ++answering;
    if (const Collective* c = blocked_in(rank.record)) {
      Waiting& w = waiting[on(rank.record, *c)];
      w.ranks.push_back(rank.rank);
      w.seconds = std::max(w.seconds, rank.record.seconds_since(c->blocked_since()));
    } else {
      lines.push_back(fmt::format("{}: {}", name_of(rank), describe_place(rank.record)));
    }
  }
  for (const auto& [name, w] : waiting) {
    lines.push_back(w.ranks.size() == answering && ranks.size() == answering && answering > 1
                        ? fmt::format("all ranks are in {}, the longest for {:.1f} s: what they "
                                      "send each other does not arrive",
                                      name, w.seconds)
                        : fmt::format("{} {} in {}, the longest for {:.1f} s", name_ranks(w.ranks),
                                      w.ranks.size() == 1 ? "waits" : "wait", name, w.seconds));
  }
}

std::string describe_absence(const RankView& rank) {
  if (rank.presence == Presence::left)
    return fmt::format("{} has left the run in good order", name_of(rank));
  if (rank.presence == Presence::ended)
    return fmt::format("{} has ended without a word", name_of(rank));
  return fmt::format("{} does not answer, and was last heard of {:.1f} s ago", name_of(rank),
                     rank.quiet_seconds);
}

}  // namespace

std::vector<std::string> Diagnosis::lines() const {
  std::vector<std::string> all;
  for (const auto* part : {&absent, &differ, &missing, &waiting})
    all.insert(all.end(), part->begin(), part->end());
  return all;
}

Diagnosis diagnose(const std::vector<RankView>& ranks) {
  Diagnosis diagnosis;
  std::set<std::string> communicators;
  for (const RankView& rank : ranks) {
    if (rank.presence != Presence::answers) diagnosis.absent.push_back(describe_absence(rank));
    const auto& names = rank.record.communicators;
    communicators.insert(names.begin(), names.end());
  }
  for (const std::string& name : communicators) compare(calls_of(name, ranks), diagnosis);
  if (diagnosis.differ.empty() && diagnosis.missing.empty())
    describe_places(ranks, diagnosis.waiting);
  return diagnosis;
}

std::string name_ranks(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    text += fmt::format("{}{}", i == 0 ? "" : ", ", ranks[i]);
    if (end - i > 1) text += fmt::format("-{}", ranks[end - 1]);
    i = end;
  }
  return text;
}

std::string name_rank(int rank, const std::string& host) {
  return fmt::format("rank {} ({})", rank, host);
}

}  // namespace supra
