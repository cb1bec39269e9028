#pragma once
// What emulated libraries (cuBLASLt, NCCL) and kernel launches put on a stream. Operations run when
// the scheduler chooses, as late as events allow under some seeds, one at a time, never while the
// host code runs that enqueued them. Device memory can be touched inside the functions given here
// and nowhere else on the host; between two of them it is inaccessible.

#include <functional>
#include <string>
#include <vector>

#include <cuda_runtime.h>

namespace emu {

/// Bytes an operation reads or writes: device memory, or pinned host memory.
struct Range {
  const void* address;
  size_t bytes;
};

/// Enqueues `function`, which reads and writes the device memory of these ranges and no other. They
/// are checked at its turn: inside live buffers, and ordered by events with whatever else touches
/// them. Also allowed in a capture; then it runs at every launch of the graph.
cudaError_t enqueue_host_op(cudaStream_t stream, std::string name, std::vector<Range> reads,
                            std::vector<Range> writes, std::function<void()> function);

/// Enqueues an operation that others must take part in, such as a collective. At its turn `start`
/// is called once, then `poll` again and again until it returns true; meanwhile the stream's later
/// operations wait and other streams go on. `start` must copy what it needs out of `reads` (after
/// it, `writes` is filled with NaN until the end, also where the two overlap); the last `poll` must
/// have put the results into `writes`. Neither may block. Whoever synchronises keeps starting and
/// polling the operations of every stream, so ranks may begin their streams' operations in any
/// order.
cudaError_t enqueue_external(cudaStream_t stream, std::string name, std::vector<Range> reads,
                             std::vector<Range> writes, std::function<void()> start,
                             std::function<bool()> poll);

/// Ends the operation that is running with this error, from within a function given above: the
/// next calls of the CUDA API return it.
[[noreturn]] void fail_operation(const std::string& message);

/// Starts and polls external operations, and runs what they wait for, without blocking. For host
/// code that waits for another rank by other means than CUDA: a GPU would go on meanwhile, the
/// emulator goes on only when called. True while external operations remain.
bool progress();

}  // namespace emu
