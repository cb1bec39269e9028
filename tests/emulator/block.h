#pragma once
// The running thread block: its threads are fibers of one host thread, switched only where CUDA
// threads wait for each other. Blocks of a launch run one after the other, in an order drawn by
// seed.

#include <array>
#include <cstdint>
#include <vector>

#include "tests/emulator/errors.h"
#include "tests/emulator/fiber.h"

namespace emu {

inline constexpr unsigned max_threads = 1024, lanes = 32;
/// Shared memory a block may have on sm_90, and without permission.
inline constexpr size_t max_dynamic_shared = 227 * 1024, shared_without_permission = 48 * 1024;

/// A cp.async on its way: it lands when its thread waits for it.
struct AsyncCopy {
  char* to;
  const char* from;
  unsigned valid;  ///< bytes read; the rest of the 16 become zero
  unsigned group;
  Loc where;
  uint32_t code;
};

struct Thread {
  Context context;
  uint3 index;
  unsigned linear, lane, warp;
  const char* state;  ///< for the report of a deadlock
  Loc where;
  unsigned copy_group;
  std::vector<AsyncCopy> copies;
};

enum class WarpOperation { barrier, shuffle, ballot, load_matrices, multiply_matrices };

/// Lanes that wait for the others of their mask.
struct Rendezvous {
  WarpOperation operation;
  unsigned mask, arrived;
  Loc where;
};

struct Warp {
  unsigned exists, exited, ready;  ///< lanes
  uint16_t epoch;                  ///< counts what orders the memory accesses of its lanes
  std::vector<Rendezvous> waiting;
  std::array<void*, lanes> payloads;
};

struct Block {
  // Of the launch.
  const void* kernel = nullptr;
  std::string kernel_name;
  dim3 grid, size;
  unsigned threads = 0, warps = 0;
  char* shared = nullptr;  ///< dynamic shared memory
  size_t shared_bytes = 0;
  char* thread_local_block = nullptr;  ///< static shared memory is in it
  const void* arguments = nullptr;
  size_t argument_bytes = 0;
  void (*run)(const void* arguments) = nullptr;

  // Of the block.
  uint3 index{};
  unsigned alive = 0;
  unsigned ready_warps = 0;  ///< those with a ready lane
  unsigned warp = 0;         ///< that ran last
  bool checking = false;     ///< accesses of the fibers are checked
  unsigned at_barrier = 0;   ///< threads
  Loc barrier;
  std::array<unsigned, lanes> waiting_lanes{};  ///< at the barrier, of each warp
};

extern Block block;
/// The fiber that runs; null outside of kernels.
extern constinit thread_local Thread* current;
Warp& warp_of(const Thread& thread);

/// Runs all blocks of a launch; throws Failure for the first mistake.
void run_blocks(const std::vector<uint32_t>& order);

/// Waits until another thread makes this one ready again.
void wait_in(const char* state, Loc where);
void make_ready(unsigned warp, unsigned lanes);
/// "  12 threads: __syncthreads at norm.cu:40 (0 1 2 ...)", a line for each place.
std::string where_threads_are();

/// The last lane of `mask` that arrives here calls `execute` with every lane's payload, for all.
using WarpFunction = void (*)(const Warp& warp, unsigned mask);
void meet(WarpOperation operation, unsigned mask, void* payload, WarpFunction execute, Loc where);

/// Dynamic shared memory ends here, at every size.
char* shared_end();
/// "byte 64 of 48 bytes of dynamic shared memory", "byte 4 of the 16-byte shared array part"; empty
/// if it is neither.
std::string describe_shared(const void* p);

}  // namespace emu
