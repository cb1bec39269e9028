// The functions of the CUDA runtime API for the device, memory, streams and events. Those of graphs
// are in capture.cpp, those of errors in errors.cpp.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tests/emulator/capture.h"
#include "tests/emulator/emulator.h"
#include "tests/emulator/memory.h"
#include "tests/emulator/pinned_copies.h"
#include "tests/emulator/random.h"
#include "tests/emulator/statistics.h"
#include "tests/emulator/stream_engine.h"

using emu::ApiCall;
using emu::Failure;

namespace emu {
namespace {

constexpr int toolkit_version = 13000;

struct Api {
  std::vector<std::unique_ptr<EmuEvent>> events;
  int device = 0;
};
Api& api() {
  static auto& self = *new Api;
  return self;
}

int number_from_environment(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

int device_count() {
  return number_from_environment("SUPRA_EMULATOR_DEVICES", 8);
}

EmuEvent& checked_event(cudaEvent_t event) {
  auto& all = api().events;
  if (std::ranges::find(all, event, &std::unique_ptr<EmuEvent>::get) == all.end()) {
    throw Failure{cudaErrorInvalidResourceHandle,
                  "an event is used that does not exist, or not any more"};
  }
  return *event;
}

void check_device(int device) {
  if (device < 0 || device >= device_count()) {
    throw Failure{cudaErrorInvalidDevice,
                  fmt::format("there is no device {}, of {}", device, device_count())};
  }
}

/// A look at the stream that is not complete: now and then something happens meanwhile.
cudaError_t not_ready(EmuStream& stream) {
  make_progress(stream);
  return error_state().set_expected(cudaErrorNotReady);
}

}  // namespace

void forget_events() {
  api().events.clear();
}

std::string live_events() {
  const size_t count = api().events.size();
  return count ? fmt::format("{} events", count) : "";
}

}  // namespace emu

cudaError_t cudaDriverGetVersion(int* version) {
  *version = emu::device_count() == 0
                 ? 0
                 : emu::number_from_environment("SUPRA_EMULATOR_DRIVER", emu::toolkit_version);
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = emu::toolkit_version;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = emu::device_count();
  return *count ? cudaSuccess : emu::error_state().set_expected(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int* device) {
  *device = emu::api().device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return ApiCall::run([&] {
    emu::check_device(device);
    emu::api().device = device;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return ApiCall::run([&] {
    emu::check_device(device);
    *properties = {.name = "emulated GPU",
                   .totalGlobalMem = emu::device_capacity(),
                   .sharedMemPerBlock = 48 * 1024,
                   .sharedMemPerBlockOptin = 227 * 1024,
                   .sharedMemPerMultiprocessor = 228 * 1024,
                   .multiProcessorCount = 132,
                   .major = 9,
                   .minor = 0};
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  return ApiCall::run([&] {
    emu::check_device(device);
    std::snprintf(id, static_cast<size_t>(length), "0000:%02x:00.0", static_cast<unsigned>(device));
  });
}

cudaError_t cudaDeviceSynchronize() {
  return ApiCall::run([] { emu::synchronize_device(); });
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return ApiCall::run([&] {
    *total = emu::device_capacity();
    *free = *total - std::min(*total, emu::device_used());
  });
}

cudaError_t cudaMalloc(void** address, size_t bytes) {
  return ApiCall::run([&] {
    emu::refuse_in_any_capture("memory is allocated", false);
    ++emu::host_counts.allocations;
    *address = bytes ? emu::allocate_device(bytes) : nullptr;
    return bytes && !*address ? emu::error_state().set_expected(cudaErrorMemoryAllocation)
                              : cudaSuccess;
  });
}

cudaError_t cudaMallocHost(void** address, size_t bytes) {
  return ApiCall::run([&] {
    emu::refuse_in_any_capture("memory is allocated", false);
    ++emu::host_counts.allocations;
    *address = emu::allocate_pinned(bytes);
    return *address ? cudaSuccess : emu::error_state().set_expected(cudaErrorMemoryAllocation);
  });
}

// Freeing waits for the device, in practice if not by promise, and happens after an error, too:
// destructors free.

cudaError_t cudaFree(void* address) {
  if (!address) return cudaSuccess;
  const cudaError_t status = ApiCall::run([] {
    emu::refuse_in_any_capture("memory is freed", false);
    ++emu::host_counts.allocations;
    emu::run_everything();
  });
  const ApiCall guard;
  try {
    emu::free_device(address);
  } catch (const Failure& failure) {
    return emu::error_state().set(failure);
  }
  return status;
}

cudaError_t cudaFreeHost(void* address) {
  if (!address) return cudaSuccess;
  ++emu::host_counts.allocations;
  const cudaError_t status = ApiCall::run([] { emu::synchronize_device(); });
  const ApiCall guard;
  try {
    if (status != cudaSuccess) emu::forget_pinned_copies();
    emu::free_pinned(address);
  } catch (const Failure& failure) {
    return emu::error_state().set(failure);
  }
  return status;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return ApiCall::run([&] { emu::enqueue_copy(stream, to, from, bytes, kind); });
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream) {
  return ApiCall::run([&] {
    emu::checked(stream);
    if (bytes == 0) return;
    emu::Operation set = emu::work("cudaMemsetAsync", [=] { std::memset(address, value, bytes); });
    set.writes = {{address, bytes}};
    emu::enqueue(stream, std::move(set));
  });
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return ApiCall::run([&] { *stream = emu::create_stream(); });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const ApiCall guard;
  try {
    emu::refuse_in_capture(emu::checked(stream));
    emu::destroy_stream(stream);
  } catch (const Failure& failure) {
    return emu::error_state().set(failure);
  }
  return emu::error_state().sticky();
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return ApiCall::run([&] {
    EmuStream& waited_for = emu::checked(stream);
    if (waited_for.completed < waited_for.enqueued) ++emu::host_counts.waits;
    emu::synchronize(waited_for);
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return ApiCall::run([&] {
    EmuStream& stream = emu::checked(handle);
    emu::refuse_in_capture(stream);
    if (stream.completed < stream.enqueued) return emu::not_ready(stream);
    emu::synchronize(stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return ApiCall::run(
      [&] { emu::wait_for_event(emu::checked(stream), emu::checked_event(event)); });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return ApiCall::run([&] {
    *event = emu::api().events.emplace_back(new EmuEvent).get();
    (*event)->has_timing = !(flags & cudaEventDisableTiming);
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const ApiCall guard;
  try {
    emu::checked_event(event);
    std::erase_if(emu::api().events, [&](const auto& e) { return e.get() == event; });
  } catch (const Failure& failure) {
    return emu::error_state().set(failure);
  }
  return emu::error_state().sticky();
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return ApiCall::run([&] { emu::record_event(emu::checked_event(event), emu::checked(stream)); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  return ApiCall::run([&] {
    const EmuEvent& event = emu::checked_event(handle);
    emu::refuse_captured(event);
    if (!event.mark) return;
    if (!event.mark->done) ++emu::host_counts.waits;
    emu::synchronize(*event.mark);
  });
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return ApiCall::run([&] {
    const EmuEvent& event = emu::checked_event(handle);
    emu::refuse_captured(event);
    if (!event.mark) return cudaSuccess;
    if (!event.mark->done) return emu::not_ready(*event.mark->stream);
    emu::synchronize(*event.mark);
    return cudaSuccess;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return ApiCall::run([&] {
    const EmuEvent &a = emu::checked_event(start), &b = emu::checked_event(end);
    if (!a.has_timing || !b.has_timing || !a.mark || !b.mark) {
      throw Failure{cudaErrorInvalidResourceHandle,
                    "the time between events of which one has no time"};
    }
    if (!a.mark->done || !b.mark->done) return emu::error_state().set_expected(cudaErrorNotReady);
    *milliseconds = static_cast<float>((b.mark->seconds - a.mark->seconds) * 1e3);
    return cudaSuccess;
  });
}
