// `supra bench ops`: every op's forward and backward, from the descriptions in tests/ops that its
// tests come from too, against what the device was seen to reach in matrix products and in memory.
// All calls take turns, round after round, and the ceilings are measured in each, so that a machine
// that becomes slower becomes slower for all.

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include <fmt/ranges.h>

#include "launch/bench/bench.h"
#include "launch/bench/report.h"
#include "launch/bench/roofline.h"
#include "launch/bench/spread.h"
#include "launch/report/table.h"
#include "runtime/memory_rate.h"
#include "runtime/product_rate.h"
#include "tests/ops/run.h"

namespace supra {
namespace {

using OrderedJson = nlohmann::ordered_json;
using test::Op;
using test::Role;
using test::TensorSpec;

struct OpsOptions {
  std::vector<std::string> ops;
  std::string sizes;
  std::vector<std::string> dtypes{"bf16", "fp32"};
  std::string device = "cpu", json;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  int rounds = 5;
  double seconds = 0.1;  ///< of a turn
  double memory = 0;     ///< GiB; 0: half of what the device has
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
                                 size_of(test::dtype_of(t.element, activation)));
  }
  return bytes;
}

/// What a call holds on the device, and beside that what its inputs take on the host while they are
/// drawn, in double.
struct Need {
  double device = 0, drawing = 0;
};

Need need_of(const Op& op, DType activation) {
  Need need;
  for (const TensorSpec& t : op.tensors) {
    const auto elements = static_cast<double>(t.shape.numel());
    need.device += elements * static_cast<double>(size_of(test::dtype_of(t.element, activation)));
    if (t.draw) need.drawing += elements * sizeof(double);
  }
  return need;
}

/// A call in memory.
struct Case {
  Case(Op description, Device& device, DType activation)
      : op(std::move(description)),
        dtype(activation),
        inputs(test::draw_inputs(op, activation, 0)),
        memory(op, device, activation, inputs) {}

  Op op;
  DType dtype;
  test::Values<double> inputs;
  test::OpMemory memory;
};

/// One pass of a call, and what was measured of it.
struct Pass {
  const Case* of;
  bool backward;
  int64_t calls = 0;  ///< of a turn
  std::vector<double> seconds = {};

  const Op::Call& call() const { return backward ? of->op.backward : of->op.forward; }
};

/// Seconds of a call, of `calls` one after another, after one to warm up.
double time_calls(Device& device, const Pass& pass, int64_t calls) {
  using Clock = std::chrono::steady_clock;
  const test::Tensors& tensors = pass.of->memory.tensors();
  pass.call()(device, tensors);
  device.synchronize();
  const auto began = Clock::now();
  for (int64_t i = 0; i < calls; ++i) pass.call()(device, tensors);
  device.synchronize();
  return std::chrono::duration<double>(Clock::now() - began).count() / static_cast<double>(calls);
}

class OpsBench {
 public:
  explicit OpsBench(const OpsOptions& options)
      : options_(options),
        report_("ops"),
        device_(test::make_device(options.device, options.threads)) {
    report_.introduce(*device_);
  }

  ExitCode run() {
    prepare();
    measure();
    tell();
    report_.save(options_.json);
    return ExitCode::done;
  }

 private:
  bool wanted(const std::string& op) const {
    return options_.ops.empty() ||
           std::any_of(options_.ops.begin(), options_.ops.end(),
                       [&](const std::string& part) { return op.find(part) != std::string::npos; });
  }

  /// Puts the calls into memory, as many as it holds, and finds how many of each fill a turn.
  void prepare() {
    double left = options_.memory > 0 ? options_.memory * (1 << 30)
                                      : static_cast<double>(device_->available_bytes()) / 2;
    for (const std::string& name : options_.dtypes) {
      const DType dtype = name == "bf16" ? DType::bf16 : DType::fp32;
      for (const test::OpFamily& family : test::op_families()) {
        if (!wanted(family.name)) continue;
        for (Op& op : family.bench_cases()) {
          if (op.sizes.find(options_.sizes) == std::string::npos) continue;
          const Need need = need_of(op, dtype);
          if (need.device + need.drawing > left) {
            left_out_.push_back(fmt::format("{} {}, {}", op.name, name, op.sizes));
            continue;
          }
          left -= need.device;
          cases_.push_back(std::make_unique<Case>(std::move(op), *device_, dtype));
        }
      }
    }
    if (cases_.empty()) {
      if (!left_out_.empty()) fail_input("no call fits into memory: see --memory");
      fail_input("there is nothing to measure: no op's name contains {}{}",
                 fmt::join(options_.ops, " or "),
                 options_.sizes.empty() ? "" : fmt::format(" with sizes \"{}\"", options_.sizes));
    }
    for (const auto& each : cases_) {
      // The forward first: the backward needs what it leaves.
      for (const bool backward : {false, true}) {
        if (backward && !each->op.backward) continue;
        Pass pass{.of = each.get(), .backward = backward};
        const double seconds = time_calls(*device_, pass, 1);
        pass.calls = std::max<int64_t>(1, std::llround(options_.seconds / seconds));
        passes_.push_back(std::move(pass));
      }
    }
  }

  void measure() {
    Percentage percentage("measuring");
    const auto turns = static_cast<size_t>(options_.rounds) * passes_.size();
    size_t done = 0;
    for (int round = 0; round < options_.rounds; ++round) {
      measure_ceilings();
      for (Pass& pass : passes_) {
        pass.seconds.push_back(time_calls(*device_, pass, pass.calls));
        percentage.show(++done, turns);
      }
    }
  }

  void measure_ceilings() {
    for (const std::string& name : options_.dtypes) {
      const DType dtype = name == "bf16" ? DType::bf16 : DType::fp32;
      products_[dtype].push_back(measure_product_rate(*device_, dtype));
    }
    memory_.push_back(measure_memory_rate(*device_));
  }

  void tell() {
    const Spread memory = spread_of(memory_);
    std::map<DType, Spread> products;
    for (const auto& [dtype, rates] : products_) {
      products[dtype] = spread_of(rates);
      report_["ceilings"]["product_flops_per_second"][std::string(name_of(dtype))] =
          products[dtype];
      fmt::print("{} products {:.1f} GFLOP/s, ", name_of(dtype), products[dtype].median * 1e-9);
    }
    report_["ceilings"]["memory_bytes_per_second"] = memory;
    fmt::print("memory {:.1f} GB/s\n", memory.median * 1e-9);

    OrderedJson& results = report_["results"] = OrderedJson::array();
    std::vector<Cells> table{
        {"op", "dtype", "ms", "min", "max", "GFLOP/s", "GB/s", "of the ceiling"}};
    for (const Pass& pass : passes_) {
      const Op& op = pass.of->op;
      const char* direction = pass.backward ? "backward" : "forward";
      const Spread seconds = spread_of(pass.seconds);
      const double flops = pass.backward ? op.backward_flops : op.forward_flops;
      const double bytes = bytes_of(op, pass.of->dtype, pass.backward);
      const Reach reach =
          reach_of(flops, bytes, seconds.median, {products[pass.of->dtype].median, memory.median});
      results.push_back({{"op", op.name},
                         {"pass", direction},
                         {"sizes", op.sizes},
                         {"dtype", name_of(pass.of->dtype)},
                         {"flops", flops},
                         {"bytes", bytes},
                         {"seconds", seconds},
                         {"flops_per_second", flops / seconds.median},
                         {"bytes_per_second", bytes / seconds.median},
                         {"ceiling", reach.ceiling},
                         {"share_of_ceiling", reach.share}});
      table.push_back(
          {fmt::format("{} {}, {}", op.name, direction, op.sizes),
           std::string(name_of(pass.of->dtype)), fmt::format("{:.3f}", seconds.median * 1e3),
           fmt::format("{:.3f}", seconds.min * 1e3), fmt::format("{:.3f}", seconds.max * 1e3),
           fmt::format("{:.1f}", flops / seconds.median * 1e-9),
           fmt::format("{:.1f}", bytes / seconds.median * 1e-9),
           fmt::format("{:.0f}% {}", reach.share * 100, reach.ceiling)});
    }
    print_table(table);
    report_["left_out"] = left_out_;
    for (const std::string& call : left_out_)
      fmt::print("left out, it needs more --memory: {}\n", call);
  }

  const OpsOptions& options_;
  BenchReport report_;
  std::unique_ptr<Device> device_;
  std::vector<std::unique_ptr<Case>> cases_;
  std::vector<Pass> passes_;
  std::vector<std::string> left_out_;
  std::map<DType, std::vector<double>> products_;
  std::vector<double> memory_;
};

}  // namespace

void add_bench_ops_command(CLI::App& bench, Action& action) {
  const auto o = std::make_shared<OpsOptions>();
  CLI::App* command = bench.add_subcommand(
      "ops",
      "Time of every op, and the share of the machine's products or memory that it reaches.");
  command->add_option("--op", o->ops, "Only ops whose name contains one of these, joined by commas")
      ->delimiter(',');
  command->add_option("--sizes", o->sizes, "Only calls whose sizes, as in the table, contain this");
  command->add_option("--dtype", o->dtypes, "Of activations and weights: bf16, fp32, or both")
      ->delimiter(',')
      ->check(CLI::IsMember({"bf16", "fp32"}))
      ->capture_default_str();
  command->add_option("--device", o->device, "Where to compute")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--threads", o->threads, "Threads of the CPU device")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  add_turn_options(*command, o->rounds, o->seconds);
  command
      ->add_option("--memory", o->memory,
                   "GiB for all calls; those it cannot hold are left out. 0: half of what is free")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_json_option(*command, o->json);
  command->callback([o, &action] { action = [o] { return OpsBench(*o).run(); }; });
}

}  // namespace supra
