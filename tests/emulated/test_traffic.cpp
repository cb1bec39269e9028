// What moves: bytes through device memory, banks of shared memory, and the host's part in a step.

#include <doctest/doctest.h>

#include "runtime/cuda/attention/linear_attention.h"
#include "runtime/cuda/cuda_device.h"
#include "tests/emulator/emulator.h"
#include "tests/ops/linear_attention.h"
#include "tests/unit/small_model.h"

using namespace supra;
using namespace supra::test;

namespace {

/// Sums over the kernels launched since the last call.
emu::KernelStatistics take_traffic() {
  emu::KernelStatistics sum;
  for (const auto& [kernel, s] : emu::traffic()) {
    sum.read += s.read;
    sum.written += s.written;
    sum.distinct_read += s.distinct_read;
    sum.distinct_written += s.distinct_written;
    sum.matrix_loads += s.matrix_loads;
    sum.bank_conflicts += s.bank_conflicts;
  }
  emu::reset_traffic();
  return sum;
}

/// Bytes that pass through memory when each kernel reads and writes each byte once. Only the rotary
/// tables are read more often than that, by every head, and they stay in L2.
double bytes_moved(const emu::KernelStatistics& s) {
  return static_cast<double>(s.distinct_read + s.distinct_written);
}

}  // namespace

TEST_CASE("traffic: fused linear attention moves less than 1.6 times what it must, on all banks") {
  constexpr double allowed = 1.6;
  cuda::CudaDevice device(0);
  cuda::Workspace workspace(device.stream());
  for (const int64_t d : {64, 128}) {
    CAPTURE(d);
    const LinearAttentionCall call{
        .tokens = 256, .heads = 6, .kv_heads = 6, .head_width = d, .rope_base = 1e4};
    const Op op = linear_attention(call);
    const OpMemory memory(op, device, DType::bf16, draw_inputs(op, DType::bf16, 1));
    const Tensors& t = memory.tensors();
    const LinearAttentionParams params{
        .slopes = t["slope"], .rope_cos = t["rope_cos"], .rope_sin = t["rope_sin"], .scale = 0.1F};
    constexpr int multiprocessors = 1;  // enough heads for all: no segments
    const auto tensor_bytes = static_cast<double>(t["q"].bytes());

    emu::reset_traffic();
    cuda::fused_linear_attention_forward({.params = params,
                                          .q = t["q"],
                                          .k = t["k"],
                                          .v = t["v"],
                                          .y = t["y"],
                                          .statistics = t["statistics"]},
                                         device.stream(), workspace, multiprocessors);
    device.synchronize();
    const emu::KernelStatistics forward = take_traffic();
    CHECK(bytes_moved(forward) >= 4 * tensor_bytes);  // q, k, v in; y out
    CHECK(bytes_moved(forward) <= allowed * 4 * tensor_bytes);
    CHECK(forward.matrix_loads > 0);
    CHECK(forward.bank_conflicts == 0);

    cuda::fused_linear_attention_backward({.params = params,
                                           .q = t["q"],
                                           .k = t["k"],
                                           .v = t["v"],
                                           .y = t["y"],
                                           .statistics = t["statistics"],
                                           .dy = t["dy"],
                                           .dq = t["dq"],
                                           .dk = t["dk"],
                                           .dv = t["dv"]},
                                          device.stream(), workspace, multiprocessors);
    device.synchronize();
    const emu::KernelStatistics backward = take_traffic();
    const double both = bytes_moved(forward) + bytes_moved(backward);
    CHECK(both <= allowed * 11 * tensor_bytes);  // q, k, v, dy in; dq, dk, dv out, besides
    CHECK(backward.bank_conflicts == 0);
    MESSAGE("d " << d << ": forward " << bytes_moved(forward) / (4 * tensor_bytes)
                 << " of the floor, forward and backward " << both / (11 * tensor_bytes));
  }
}

TEST_CASE("traffic: after its warm-up a step allocates nothing and waits for the device once") {
  emu::set_seed(0);  // streams run when they are waited for, so that every need to wait shows
  for (const Attention attention : {Attention::linear, Attention::softmax}) {
    ModelConfig config = small_model(attention);
    config.head_width = 64;
    EngineOptions options;
    options.model = {.dtype = DType::bf16, .batch = 1, .tokens = 70};
    options.device = DeviceKind::cuda;
    cuda::CudaDevice device(0);
    SmallEngine run(config, options, nullptr, 1, &device);
    const std::vector<int32_t> windows(static_cast<size_t>(2 * (options.model.tokens + 1)), 3);
    run.engine.step(windows, 1e-4, 0);
    for (int64_t step = 1; step < 3; ++step) {
      const emu::HostStatistics before = emu::host_statistics();
      run.engine.step(windows, 1e-4, step);
      const emu::HostStatistics after = emu::host_statistics();
      CHECK(after.allocations == before.allocations);
      CHECK(after.waits == before.waits + 1);
    }
  }
}
