// op_bench: time, GFLOP/s and GB/s of every op's forward and backward, from the descriptions in
// tests/ops. Flops are those of the mathematics; bytes count each tensor of the call once, so GB/s
// is a lower bound on the traffic.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tests/ops/op.h"
#include "tests/ops/run.h"

namespace supra::test {
namespace {

struct Arguments {
  std::string device = "cpu", dtype = "fp32", filter;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  double seconds = 0.5;
  double memory = 4;  ///< GiB
  bool json = false;
};

/// Bytes that one pass has to move: its inputs, and its outputs (twice where it adds to them).
double bytes_of(const Op& op, DType activation, bool backward) {
  double bytes = 0;
  for (const TensorSpec& t : op.tensors) {
    const bool of_backward = t.role == Role::cotangent || t.role == Role::gradient;
    if (t.role == Role::scratch || (of_backward && op.backward && !backward)) continue;
    const int times = t.role == Role::in_out || t.added ? 2 : 1;
    bytes += times * t.touched *
             static_cast<double>(static_cast<size_t>(t.shape.numel()) *
                                 size_of(dtype_of(t.element, activation)));
  }
  return bytes;
}

/// Memory that measuring a call takes: its inputs are drawn in double on the host, and the device
/// has all its tensors.
double memory_of(const Op& op, DType activation) {
  double bytes = 0;
  for (const TensorSpec& t : op.tensors) {
    const size_t element = size_of(dtype_of(t.element, activation)) + (t.draw ? sizeof(double) : 0);
    bytes += static_cast<double>(t.shape.numel()) * static_cast<double>(element);
  }
  return bytes;
}

/// Median seconds of a call, repeated for at least `seconds` and three times, after one to warm up.
double time_call(Device& device, const Op::Call& call, const Tensors& tensors, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto timed = [&] {
    const auto start = Clock::now();
    call(device, tensors);
    device.synchronize();
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  timed();
  std::vector<double> times;
  double total = 0;
  while (times.size() < 3 || total < seconds) {
    times.push_back(timed());
    total += times.back();
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2),
                   times.end());
  return times[times.size() / 2];
}

void report(const Arguments& arguments, const Op& op, const char* pass, double seconds,
            double flops, double bytes) {
  const double gflops = flops / seconds * 1e-9, gbytes = bytes / seconds * 1e-9;
  if (arguments.json) {
    const nlohmann::ordered_json line = {{"op", op.name},
                                         {"sizes", op.sizes},
                                         {"pass", pass},
                                         {"dtype", arguments.dtype},
                                         {"threads", arguments.threads},
                                         {"seconds", seconds},
                                         {"gflop_per_s", gflops},
                                         {"gbyte_per_s", gbytes}};
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{:18} {:8} {:58} {:>10.3f} {:>9.1f} {:>8.1f}\n", op.name, pass, op.sizes,
               seconds * 1e3, gflops, gbytes);
  }
  std::fflush(stdout);
}

void bench(const Arguments& arguments) {
  const std::unique_ptr<Device> device = make_device(arguments.device, arguments.threads);
  const DType activation = arguments.dtype == "bf16" ? DType::bf16 : DType::fp32;
  if (!arguments.json) {
    fmt::print("{}, {}\n", device->description(), arguments.dtype);
    fmt::print("{:18} {:8} {:58} {:>10} {:>9} {:>8}\n", "op", "pass", "sizes", "ms", "GFLOP/s",
               "GB/s");
  }
  for (const OpFamily& family : op_families()) {
    if (family.name.find(arguments.filter) == std::string::npos) continue;
    for (const Op& op : family.bench_cases()) {
      if (memory_of(op, activation) > arguments.memory * (1 << 30)) continue;
      const Values<double> inputs = draw_inputs(op, activation, 0);
      const OpMemory memory(op, *device, activation, inputs);
      report(arguments, op, "forward",
             time_call(*device, op.forward, memory.tensors(), arguments.seconds), op.forward_flops,
             bytes_of(op, activation, false));
      if (!op.backward) continue;
      report(arguments, op, "backward",
             time_call(*device, op.backward, memory.tensors(), arguments.seconds),
             op.backward_flops, bytes_of(op, activation, true));
    }
  }
}

int run_command_line(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Times every op of the device.");
  app.add_option("--device", arguments.device, "where to run")->capture_default_str();
  app.add_option("--dtype", arguments.dtype, "activations and weights")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads, "threads of the device")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--filter", arguments.filter, "only ops whose name contains this");
  app.add_option("--seconds", arguments.seconds, "spent on each measurement, at least")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--memory", arguments.memory, "GiB; calls that take more are left out")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--json", arguments.json, "one JSON object a line instead of a table");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::bad_input);
  }
  bench(arguments);
  return 0;
}

}  // namespace
}  // namespace supra::test

int main(int argc, char** argv) {
  try {
    return supra::test::run_command_line(argc, argv);
  } catch (const supra::Error& error) {
    std::fprintf(stderr, "op_bench: %s\n", error.report().c_str());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "op_bench: %s\n", error.what());
    return static_cast<int>(supra::ExitCode::internal);
  }
}
