// How an error of the device reaches the caller.

#include "runtime/cuda/cuda_device.h"
#include "tests/emulated/emulator_fixture.h"

using namespace supra;
using namespace supra::test;

TEST_CASE(
    "cuda device: a kernel's error leaves a timed phase as an exception, with its own words") {
  emu::reset();
  {
    cuda::CudaDevice device(0);
    PhaseClock clock(device.make_timeline());
    const Buffer four(device, 4 * sizeof(float)), eight(device, 8 * sizeof(float));
    const Tensor from(eight.address(), DType::fp32, {8});
    const Tensor beyond(four.address(), DType::fp32, {8});
    device.ops().zero(from);
    const std::string error = error_of([&] {
      const PhaseClock::Span span(clock, Phase::forward);
      device.ops().cast(from, beyond);
      device.synchronize();
    });
    says(error, "out of bounds");
    says(error, "16-byte device buffer");
    CHECK(clock.take() == PhaseSeconds{});  // nothing is timed after an error, and nothing thrown
  }
  emu::reset();
}
