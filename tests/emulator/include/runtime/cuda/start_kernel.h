#pragma once
// The emulator's twin of runtime/cuda/start_kernel.h.

#include <memory>
#include <tuple>
#include <type_traits>

#include <cuda_runtime.h>

#define SUPRA_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(::emu::dynamic_shared())

namespace emu {

/// What a launch runs in each thread: `run` with the copied arguments.
struct KernelCall {
  const void* kernel;
  void (*run)(const void* arguments);
  std::shared_ptr<const void> arguments;
  size_t argument_bytes;
};
void launch_kernel(KernelCall call, dim3 grid, dim3 block, size_t shared, cudaStream_t stream);

/// The kernel's parameter buffer, by value.
template <class... P>
struct KernelArguments {
  void (*kernel)(P...);
  std::tuple<std::decay_t<P>...> values;

  static void run(const void* arguments) {
    const auto& call = *static_cast<const KernelArguments*>(arguments);
    std::apply(call.kernel, call.values);
  }
};

}  // namespace emu

namespace supra::cuda {

template <class... P>
void start_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                  std::type_identity_t<P>... arguments) {
  using Arguments = emu::KernelArguments<P...>;
  const auto copies = std::make_shared<const Arguments>(
      Arguments{kernel, {static_cast<std::decay_t<P>>(arguments)...}});
  emu::launch_kernel(
      {reinterpret_cast<const void*>(kernel), &Arguments::run, copies, sizeof(Arguments)}, grid,
      block, shared, stream);
}

}  // namespace supra::cuda
