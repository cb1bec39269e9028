#include "tests/emulator/block.h"

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sys/mman.h>
#include <utility>

#include "tests/emulator/epochs.h"
#include "tests/emulator/faults.h"
#include "tests/emulator/memory.h"
#include "tests/emulator/random.h"
#include "tests/emulator/symbols.h"

namespace emu {

Block block;
constinit thread_local Thread* current = nullptr;

namespace {

std::array<Thread, max_threads> threads;
std::array<Warp, max_threads / lanes> warps;
Context scheduler;
std::string failure;

/// Stacks lie at multiples of their size, so that an address tells whose it is (hooks.cpp). The
/// lowest page of each is inaccessible.
char* stack_of(unsigned thread) {
  static char* const stacks = [] {
    constexpr size_t bytes = (max_threads + 1) * stack_bytes;
    void* const range = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) {
      std::perror("emulator: stacks");
      std::abort();
    }
    const auto first = (reinterpret_cast<uintptr_t>(range) + stack_bytes - 1) & ~(stack_bytes - 1);
    for (size_t i = 0; i < max_threads; ++i) {
      mprotect(reinterpret_cast<void*>(first + i * stack_bytes), page_bytes, PROT_NONE);
    }
    return reinterpret_cast<char*>(first);
  }();
  return stacks + thread * stack_bytes;
}

/// The thread to run next; null when all have exited.
Thread* next_thread() {
  if (!block.ready_warps) {
    if (!block.alive) return nullptr;
    EMU_FAIL("deadlock, every thread waits:{}", where_threads_are());
  }
  if (!(block.ready_warps >> block.warp & 1) || schedule.switches_warps()) {
    // The first ready warp from a random one on.
    const unsigned from = random_below(lanes);
    block.warp = (static_cast<unsigned>(
                      std::countr_zero(std::rotr(block.ready_warps, static_cast<int>(from)))) +
                  from) %
                 lanes;
  }
  Warp& w = warps[block.warp];
  const auto lane = static_cast<unsigned>(schedule.last_lane_first ? 31 - std::countl_zero(w.ready)
                                                                   : std::countr_zero(w.ready));
  w.ready &= ~(1U << lane);
  if (!w.ready) block.ready_warps &= ~(1U << block.warp);
  return &threads[block.warp * lanes + lane];
}

void switch_to(Thread* next) {
  Thread& from = *current;
  if (next == &from) return;
  current = next;
  switch_context(from.context, next ? next->context : scheduler);
}

void check_exit(const Thread& t) {
  if (!t.copies.empty()) {
    EMU_FAIL("the thread exits while its cp.async of {} is under way",
             to_string(t.copies.front().where));
  }
  for (const Rendezvous& r : warp_of(t).waiting) {
    if (r.mask >> t.lane & 1) {
      EMU_FAIL("the thread exits while lanes of its warp wait for it:{}", where_threads_are());
    }
  }
  if (block.at_barrier) {
    EMU_FAIL("the thread exits while others wait in __syncthreads:{}", where_threads_are());
  }
}

void fiber_main() {
  block.run(block.arguments);
  Thread& t = *current;
  check_exit(t);
  warp_of(t).exited |= 1U << t.lane;
  --block.alive;
  t.state = "exited";
  t.where = Loc();
  switch_to(next_thread());
  std::abort();
}

void prepare_thread(unsigned i) {
  Thread& t = threads[i];
  t.linear = i;
  t.lane = i % lanes;
  t.warp = i / lanes;
  t.index = {i % block.size.x, i / block.size.x % block.size.y, i / (block.size.x * block.size.y)};
  t.state = "not started";
  t.where = Loc();
  t.copy_group = 0;
  t.copies.clear();
  // Stacks begin at different offsets, or they would compete for the same cache lines.
  char* const stack = stack_of(i);
  prepare_context(t.context, stack + page_bytes, stack + stack_bytes - i % 15 * 256, fiber_main);
}

void prepare_warp(unsigned i) {
  const unsigned left = block.threads - i * lanes;
  Warp& w = warps[i];
  w.exists = left >= lanes ? ~0U : (1U << left) - 1;
  w.exited = w.ready = 0;
  w.waiting.clear();
  make_ready(i, w.exists);
}

void run_block(uint32_t linear) {
  const dim3& grid = block.grid;
  block.index = {linear % grid.x, linear / grid.x % grid.y, linear / (grid.x * grid.y)};
  block.alive = block.threads;
  block.ready_warps = 0;
  block.at_barrier = 0;
  block.waiting_lanes.fill(0);
  block.warp = random_below(block.warps);
  begin_block_epoch();
  for (unsigned i = 0; i < block.warps; ++i) prepare_warp(i);
  for (unsigned i = 0; i < block.threads; ++i) prepare_thread(i);
  failure.clear();
  block.checking = true;
  current = next_thread();
  switch_context(scheduler, current->context);
  block.checking = false;
  current = nullptr;
  if (!failure.empty()) throw Failure{cudaErrorLaunchFailure, failure, true};
}

}  // namespace

void stop_checking() {
  if (current) block.checking = false;
}

void fail_now(const std::string& message) {
  if (!current) throw Failure{cudaErrorLaunchFailure, message, true};
  failure = fmt::format("kernel {}, block ({}, {}, {}), thread ({}, {}, {}): {}", block.kernel_name,
                        block.index.x, block.index.y, block.index.z, current->index.x,
                        current->index.y, current->index.z, message);
  // The fibers are given up where they are; kernels own nothing that would need a destructor.
  Thread& from = *current;
  current = nullptr;
  switch_context(from.context, scheduler);
  std::abort();
}

Warp& warp_of(const Thread& thread) {
  return warps[thread.warp];
}

void run_blocks(const std::vector<uint32_t>& order) {
  handle_faults_of_this_thread();
  block.thread_local_block = thread_local_block();
  for (const uint32_t linear : order) run_block(linear);
}

void make_ready(unsigned warp, unsigned which) {
  if (!which) return;
  warps[warp].ready |= which;
  block.ready_warps |= 1U << warp;
}

void wait_in(const char* state, Loc where) {
  Thread& t = *current;
  t.state = state;
  t.where = where;
  switch_to(next_thread());
  t.state = "running";
  t.where = Loc();
}

std::string where_threads_are() {
  struct Place {
    int count = 0;
    std::string threads;
  };
  std::map<std::string, Place> places;
  constexpr int shown = 8;
  for (unsigned i = 0; i < block.threads; ++i) {
    const Thread& t = threads[i];
    std::string name = t.state;
    if (t.where.line()) name += " at " + to_string(t.where);
    Place& place = places[name];
    if (++place.count <= shown) place.threads += fmt::format("{}{}", place.count > 1 ? " " : "", i);
  }
  std::string text;
  for (const auto& [name, place] : places) {
    text += fmt::format("\n    {} threads: {} ({}{})", place.count, name, place.threads,
                        place.count > shown ? " ..." : "");
  }
  return text;
}

void block_barrier(Loc where) {
  Thread& t = *current;
  if (block.alive < block.threads) {
    EMU_FAIL("__syncthreads at {} while threads of the block have exited:{}", to_string(where),
             where_threads_are());
  }
  if (block.at_barrier && !is_same_place(block.barrier, where)) {
    EMU_FAIL("divergence: this thread is in __syncthreads at {}, others at {}:{}", to_string(where),
             to_string(block.barrier), where_threads_are());
  }
  block.barrier = where;
  if (++block.at_barrier < block.threads) {
    block.waiting_lanes[t.warp] |= 1U << t.lane;
    wait_in("__syncthreads", where);
    return;
  }
  for (unsigned i = 0; i < block.warps; ++i) {
    make_ready(i, std::exchange(block.waiting_lanes[i], 0U));
    ++warps[i].epoch;
  }
  block.at_barrier = 0;
  now.epoch = next_epoch();
}

uint3 thread_index() {
  return current->index;
}
uint3 block_index() {
  return block.index;
}
dim3 block_size() {
  return block.size;
}
dim3 grid_size() {
  return block.grid;
}
int lane_index() {
  return static_cast<int>(current->lane);
}

}  // namespace emu
