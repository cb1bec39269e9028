// Operations of a warp: the lanes of a mask meet, and the last to arrive acts for all of them.

#include <algorithm>
#include <string_view>

#include "tests/emulator/block.h"

namespace emu {
namespace {

const char* name_of(WarpOperation operation) {
  switch (operation) {
    case WarpOperation::barrier:
      return "__syncwarp";
    case WarpOperation::shuffle:
      return "a shuffle";
    case WarpOperation::ballot:
      return "a vote";
    case WarpOperation::load_matrices:
      return "ldmatrix";
    case WarpOperation::multiply_matrices:
      return "mma";
  }
  return "?";
}

/// Fails where two lanes wait for each other in different places: neither could ever go on.
void check_convergence(const Warp& warp, const Rendezvous& mine, unsigned me) {
  for (const Rendezvous& other : warp.waiting) {
    if ((other.mask & me) && (other.arrived & mine.mask)) {
      EMU_FAIL(
          "divergence in a warp: this lane is in {} at {} (mask {:#010x}), others in {} at {} "
          "(mask {:#010x}):{}",
          name_of(mine.operation), to_string(mine.where), mine.mask, name_of(other.operation),
          to_string(other.where), other.mask, where_threads_are());
    }
  }
}

void check_mask(const Warp& warp, WarpOperation operation, unsigned mask, unsigned me, Loc where) {
  if (!(mask & me)) {
    EMU_FAIL("{} at {}: the calling lane is not in the mask {:#010x}", name_of(operation),
             to_string(where), mask);
  }
  if (const unsigned missing = mask & (warp.exited | ~warp.exists)) {
    EMU_FAIL("{} at {}: lanes {:#010x} of the mask {:#010x} have exited or do not exist",
             name_of(operation), to_string(where), missing, mask);
  }
}

struct Shuffle {
  uint64_t value;
  int source;
  Loc where;
};

void execute_shuffle(const Warp& warp, unsigned mask) {
  std::array<uint64_t, lanes> given{};
  for (unsigned i = 0; i < lanes; ++i) {
    if (mask >> i & 1) given[i] = static_cast<const Shuffle*>(warp.payloads[i])->value;
  }
  for (unsigned i = 0; i < lanes; ++i) {
    if (!(mask >> i & 1)) continue;
    auto& shuffle = *static_cast<Shuffle*>(warp.payloads[i]);
    const auto source = static_cast<unsigned>(shuffle.source);
    if (source >= lanes || !(mask >> source & 1)) {
      EMU_FAIL("shuffle at {}: lane {} reads lane {}, which is not in the mask {:#010x}",
               to_string(shuffle.where), i, shuffle.source, mask);
    }
    shuffle.value = given[source];
  }
}

void execute_ballot(const Warp& warp, unsigned mask) {
  unsigned votes = 0;
  for (unsigned i = 0; i < lanes; ++i) {
    if (mask >> i & 1) votes |= *static_cast<const unsigned*>(warp.payloads[i]) << i;
  }
  for (unsigned i = 0; i < lanes; ++i) {
    if (mask >> i & 1) *static_cast<unsigned*>(warp.payloads[i]) = votes;
  }
}

}  // namespace

void meet(WarpOperation operation, unsigned mask, void* payload, WarpFunction execute, Loc where) {
  Thread& t = *current;
  Warp& warp = warp_of(t);
  const unsigned me = 1U << t.lane;
  check_mask(warp, operation, mask, me, where);
  const auto is_mine = [&](const Rendezvous& r) {
    return r.operation == operation && r.mask == mask && is_same_place(r.where, where);
  };
  auto mine = std::ranges::find_if(warp.waiting, is_mine);
  if (mine == warp.waiting.end()) {
    const Rendezvous fresh{operation, mask, 0, where};
    check_convergence(warp, fresh, me);
    mine = warp.waiting.insert(mine, fresh);
  }
  warp.payloads[t.lane] = payload;
  mine->arrived |= me;
  if (mine->arrived != mask) {
    wait_in(name_of(operation), where);
    return;
  }
  warp.waiting.erase(mine);
  // Only __syncwarp orders memory; of lanes, all of them: a part of a warp has no epoch of its own.
  if (operation == WarpOperation::barrier && mask == warp.exists) ++warp.epoch;
  if (execute) execute(warp, mask);
  make_ready(t.warp, mask & ~me);
}

void warp_barrier(unsigned mask, Loc where) {
  meet(WarpOperation::barrier, mask, nullptr, nullptr, where);
}

uint64_t shuffle(unsigned mask, uint64_t value, int source, Loc where) {
  Shuffle shuffle{value, source, where};
  meet(WarpOperation::shuffle, mask, &shuffle, execute_shuffle, where);
  return shuffle.value;
}

unsigned ballot(unsigned mask, bool value, Loc where) {
  unsigned votes = value;
  meet(WarpOperation::ballot, mask, &votes, execute_ballot, where);
  return votes;
}

}  // namespace emu
