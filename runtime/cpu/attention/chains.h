#pragma once
// Work in which each piece goes on from where the one before it ended, several such chains side by
// side.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include <omp.h>

namespace supra::cpu {

/// How many chains to hold at once whose memory grows with T: what fits 256 MiB, but one a thread.
inline int64_t chains_at_once(int threads, int64_t chains, int64_t floats_of_chain) {
  const int64_t fitting = (int64_t{64} << 20) / floats_of_chain / threads * threads;
  return std::min(chains, std::max<int64_t>(fitting, threads));
}

/// Links of each chain, so that threads end together. It only decides who computes what.
inline int64_t links_for(int threads, int64_t chains, int64_t most) {
  const int64_t wanted = threads == 1 ? 1 : (16 * threads + chains - 1) / chains;
  return wanted < most ? wanted : most;
}

/// Calls f(chain, link) once for each link of each chain, those of a chain one after the other, on
/// up to `threads` threads. Links are handed out in order, a link of all chains before the next, so
/// that what a link waits for has been begun.
template <class F>
void run_chains(int threads, int64_t chains, int64_t links, const F& f) {
  std::vector<std::atomic<int64_t>> done(static_cast<size_t>(chains));
  std::atomic<int64_t> next = 0;
  const int team = static_cast<int>(threads < chains ? threads : chains);
#pragma omp parallel num_threads(team) if (team > 1)
  for (int64_t i = next++; i < chains * links; i = next++) {
    const int64_t link = i / chains, chain = i % chains;
    std::atomic<int64_t>& mine = done[static_cast<size_t>(chain)];
    for (int64_t before = mine; before != link; before = mine) mine.wait(before);
    f(chain, link);
    mine = link + 1;
    mine.notify_all();
  }
}

}  // namespace supra::cpu
