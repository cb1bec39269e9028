// Launching a kernel: the limits of an sm_90 device, then all blocks in an order drawn by seed.

#include <algorithm>
#include <map>
#include <numeric>

#include "runtime/cuda/start_kernel.h"
#include "tests/emulator/block.h"
#include "tests/emulator/random.h"
#include "tests/emulator/shared_memory.h"
#include "tests/emulator/statistics.h"
#include "tests/emulator/stream_engine.h"
#include "tests/emulator/symbols.h"

namespace emu {
namespace {

/// Dynamic shared memory that cudaFuncSetAttribute has permitted.
std::map<const void*, size_t>& permitted_shared() {
  static auto& self = *new std::map<const void*, size_t>;
  return self;
}

std::string text(const dim3& d) {
  return fmt::format("({}, {}, {})", d.x, d.y, d.z);
}

void check_shape(const std::string& name, const void* kernel, const dim3& grid, const dim3& size) {
  const auto refuse = [&](const std::string& why) {
    throw Failure{cudaErrorInvalidConfiguration, fmt::format("launch of {}: {}", name, why)};
  };
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffU || grid.y > 65535 ||
      grid.z > 65535) {
    refuse(fmt::format("a grid of {}; it must be from 1 to (2^31-1, 65535, 65535)", text(grid)));
  }
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > max_threads || size.z > 64) {
    refuse(fmt::format("a block of {} is {} threads; it must be from 1 to {}, of which z is 64",
                       text(size), threads, max_threads));
  }
  const unsigned bound = launch_bound(kernel);
  if (bound && threads > bound) {
    refuse(fmt::format("{} threads, where __launch_bounds__ says {}", threads, bound));
  }
}

void check_shared(const std::string& name, const void* kernel, size_t bytes) {
  const size_t all = bytes + static_shared_bytes(kernel);
  const auto permitted = permitted_shared().find(kernel);
  const size_t limit = permitted == permitted_shared().end()
                           ? shared_without_permission
                           : std::max(permitted->second + all - bytes, shared_without_permission);
  if (all > std::min(limit, max_dynamic_shared)) {
    throw Failure{cudaErrorInvalidConfiguration,
                  fmt::format("launch of {}: {} bytes of shared memory, {} of them dynamic; {} are "
                              "allowed without cudaFuncSetAttribute, {} with",
                              name, all, bytes, shared_without_permission, max_dynamic_shared)};
  }
}

void run_kernel(const std::string& name, const KernelCall& call, const dim3& grid, const dim3& size,
                size_t shared) {
  block.kernel = call.kernel;
  block.kernel_name = name;
  block.grid = grid;
  block.size = size;
  block.threads = size.x * size.y * size.z;
  block.warps = (block.threads + lanes - 1) / lanes;
  block.arguments = call.arguments.get();
  block.argument_bytes = call.argument_bytes;
  block.run = call.run;
  place_dynamic_shared(shared);
  std::vector<uint32_t> order(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0U);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random_below(static_cast<uint32_t>(i))]);
  }
  begin_kernel_statistics();
  run_blocks(order);
  end_kernel_statistics(name);
}

}  // namespace

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return ApiCall::run([&] {
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
      if (value < -1 || value > cudaSharedmemCarveoutMaxShared) {
        throw Failure{cudaErrorInvalidValue, fmt::format("a carve-out of {} percent", value)};
      }
      return;  // of speed only
    }
    if (value < 0 || static_cast<size_t>(value) > max_dynamic_shared) {
      throw Failure{cudaErrorInvalidValue,
                    fmt::format("{}: {} bytes of dynamic shared memory are asked for, at most {} "
                                "are there",
                                kernel_name(kernel), value, max_dynamic_shared)};
    }
    permitted_shared()[kernel] = static_cast<size_t>(value);
  });
}

void launch_kernel(KernelCall call, dim3 grid, dim3 size, size_t shared, cudaStream_t stream) {
  ApiCall::run([&] {
    const std::string name = kernel_name(call.kernel);
    check_shape(name, call.kernel, grid, size);
    check_shared(name, call.kernel, shared);
    enqueue(stream, work(name, [=] { run_kernel(name, call, grid, size, shared); }));
  });
}

}  // namespace emu
