// `supra bench step`: the training step of a recipe, by the same engine that `supra train` uses,
// and where its time, memory and traffic go. Between steps the ranks measure the matrix products
// that they reach together: the peak that utilisation is relative to.

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <optional>

#include "launch/bench/bench.h"
#include "launch/bench/report.h"
#include "launch/bench/roofline.h"
#include "launch/bench/spread.h"
#include "launch/ranks.h"
#include "launch/recipe/options.h"
#include "launch/report/run_log.h"
#include "launch/report/table.h"
#include "launch/train/setup.h"
#include "model/flops.h"
#include "model/model_file.h"
#include "optim/schedule.h"
#include "parallel/communication/nccl_communicator.h"
#include "parallel/data/sample_order.h"
#include "parallel/data/token_file.h"
#include "parallel/load_weights.h"
#include "parallel/traffic.h"
#include "runtime/memory_rate.h"
#include "runtime/product_rate.h"
#include "runtime/random.h"
#include "runtime/timed_device.h"

namespace supra {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct StepOptions {
  std::string recipe, json;
  std::vector<std::string> overrides;
  int64_t steps = 5, warmup = 1;
  bool synthetic = false;
};

/// The windows of a recipe's training file in the order of a run, or tokens drawn at random.
class Windows {
 public:
  Windows(const DataRecipe& data, int64_t vocabulary, bool synthetic)
      : tokens_(data.sequence_length),
        vocabulary_(vocabulary),
        random_(static_cast<uint64_t>(data.seed), "bench tokens") {
    if (synthetic) return;
    file_ = std::make_unique<TokenFile>(data.train, vocabulary);
    order_ =
        std::make_unique<SampleOrder>(static_cast<uint64_t>(data.seed), file_->windows(tokens_));
  }

  /// Samples [first, first + count), host [count, T+1].
  std::vector<int32_t> read(int64_t first, int64_t count) const {
    const int64_t size = tokens_ + 1;
    std::vector<int32_t> all(static_cast<size_t>(count * size));
    for (int64_t i = 0; file_ && i < count; ++i) {
      file_->read_window(order_->window(first + i), tokens_, all.data() + i * size);
    }
    for (int64_t i = 0; !file_ && i < count * size; ++i) {
      const uint64_t bits = random_.bits(static_cast<uint64_t>(first * size + i));
      all[static_cast<size_t>(i)] = static_cast<int32_t>(bits % static_cast<uint64_t>(vocabulary_));
    }
    return all;
  }

 private:
  int64_t tokens_, vocabulary_;
  RandomStream random_;
  std::unique_ptr<TokenFile> file_;
  std::unique_ptr<SampleOrder> order_;
};

/// One step.
struct Measured {
  double seconds = 0;     ///< of the slowest rank
  PhaseSeconds phases{};  ///< mean of the ranks
  double loss = 0;
  double products = 0;      ///< of all ranks together, right after it
  double own_products = 0;  ///< of this rank
  std::vector<OpTime> ops;  ///< of this rank
  Traffic traffic;          ///< of this rank
};

template <class Value>
Spread spread_over(const std::vector<Measured>& steps, const Value& value) {
  std::vector<double> values;
  for (const Measured& step : steps) values.push_back(value(step));
  return spread_of(values);
}

/// An op of the step, of one kind of sizes.
struct OpShare {
  OpTime time;     ///< calls, flops and bytes of a step
  Spread seconds;  ///< of a step
  double share = 0;
  Reach reach;
};

class StepBench final : public RankProgram {
 public:
  StepBench(MpiSession& session, const StepOptions& options, BenchReport& report)
      : session_(session), options_(options), report_(report), host_(make_mpi_communicator()) {}

  ExitCode run() override {
    together(*host_, [&] { open(); });
    if (recipe_.train.device == DeviceKind::cuda) nccl_ = make_nccl_communicator(*device_);
    together(*host_, [&] { make_engine(); });
    measure();
    const auto peaks = host_->gather_values(peak_memory());
    peak_memory_ = *std::max_element(peaks.begin(), peaks.end());
    // Only now: it takes memory of its own, which is no part of a step's.
    for (int i = 0; i < 3; ++i) memory_rates_.push_back(measure_memory_rate(*device_));
    together(*host_, [&] {
      if (leader()) tell();
    });
    return ExitCode::done;
  }

 private:
  bool leader() const { return host_->rank() == 0; }
  int ranks() const { return host_->size(); }
  int64_t tokens_of_step() const {
    return recipe_.train.global_batch * recipe_.data.sequence_length;
  }
  int64_t micro_batches() const {
    return recipe_.train.global_batch / (recipe_.train.micro_batch * ranks());
  }

  void open() {
    recipe_ = load_recipe(options_.recipe, options_.overrides);
    device_ = make_training_device(recipe_, session_);
    if (leader()) report_.introduce(*device_, ranks(), session_.ranks_on_host());
    check_batch(recipe_.train.global_batch, recipe_.train.micro_batch, ranks());
    if (!recipe_.model.base.empty()) base_ = std::make_unique<ModelFile>(recipe_.model.base);
    config_ = resolve_model(recipe_, base_ ? std::optional(base_->config()) : std::nullopt);
    windows_ = std::make_unique<Windows>(recipe_.data, config_.vocabulary, options_.synthetic);
    plan_ = plan_memory(config_, engine_options(recipe_), ranks());
    require_memory(recipe_, session_, *device_, plan_, 0);
  }

  void make_engine() {
    timed_ = std::make_unique<TimedDevice>(*device_);
    counting_ = std::make_unique<CountingCommunicator>(nccl_ ? *nccl_ : *host_);
    arena_ = std::make_unique<Arena>(*timed_, plan_.bytes);
    engine_ =
        std::make_unique<Engine>(config_, engine_options(recipe_), *timed_, *arena_, *counting_);
    load_weights(engine_->parameters(), *timed_, base_.get(),
                 static_cast<uint64_t>(recipe_.train.init_seed));
    base_.reset();
    flops_per_token_ = training_flops_per_token(config_, engine_->parameters().units(),
                                                recipe_.data.sequence_length,
                                                recipe_.train.train == Trainable::new_weights);
    least_ = least_traffic(engine_->parameters(), micro_batches(), ranks());
  }

  void measure() {
    const int64_t all = options_.warmup + options_.steps;
    std::optional<Percentage> percentage;
    if (leader()) percentage.emplace("measuring");
    for (int64_t i = 0; i < all; ++i) {
      Measured measured = step(i);
      if (i >= options_.warmup) steps_.push_back(std::move(measured));
      if (percentage) percentage->show(static_cast<uint64_t>(i + 1), static_cast<uint64_t>(all));
    }
  }

  /// Step `number` of a run, counted from 0.
  Measured step(int64_t number) {
    const TrainRecipe& train = recipe_.train;
    engine_->clock().take();
    timed_->take();
    counting_->take();
    host_->gather_values(0);  // all begin together

    const auto began = std::chrono::steady_clock::now();
    std::vector<int32_t> windows;
    {
      const PhaseClock::Span span(engine_->clock(), Phase::data);
      const int64_t mine = train.global_batch / ranks();
      together(*host_, [&] {
        windows = windows_->read(number * train.global_batch + host_->rank() * mine, mine);
      });
    }
    const double lr = learning_rate_at({.learning_rate = train.learning_rate,
                                        .min_learning_rate = train.min_learning_rate,
                                        .warmup_steps = train.warmup_steps,
                                        .total_steps = total_steps(recipe_)},
                                       number);
    const StepResult result = engine_->step(windows, lr, number);
    device_->synchronize();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - began;

    Measured measured;
    measured.loss = result.loss.cross_entropy;
    measured.traffic = counting_->take();
    measured.ops = timed_->take();
    for (const double seconds : host_->gather_values(elapsed.count())) {
      measured.seconds = std::max(measured.seconds, seconds);
    }
    for (const PhaseSeconds& phase_seconds : host_->gather_values(engine_->clock().take())) {
      for (size_t p = 0; p < phases; ++p) measured.phases[p] += phase_seconds[p] / ranks();
    }
    measured.own_products = measure_product_rate(*device_, engine_->parameters().compute_dtype());
    for (const double rate : host_->gather_values(measured.own_products)) {
      measured.products += rate;
    }
    return measured;
  }

  /// The ops of this rank, those that take longest first.
  std::vector<OpShare> op_shares(double step_seconds) const {
    std::map<std::pair<std::string, std::string>, std::vector<double>> seconds;
    for (const Measured& step : steps_) {
      for (const OpTime& op : step.ops) seconds[{op.op, op.sizes}].push_back(op.seconds);
    }
    const Ceilings ceilings{
        .products = spread_over(steps_, [](const Measured& s) { return s.own_products; }).median,
        .memory = spread_of(memory_rates_).median};
    std::vector<OpShare> shares;
    for (const OpTime& op : steps_.back().ops) {
      const Spread spent = spread_of(seconds[{op.op, op.sizes}]);
      shares.push_back({.time = op,
                        .seconds = spent,
                        .share = spent.median / step_seconds,
                        .reach = reach_of(op.flops, op.bytes, spent.median, ceilings)});
    }
    std::sort(shares.begin(), shares.end(), [](const OpShare& a, const OpShare& b) {
      return a.seconds.median > b.seconds.median;
    });
    return shares;
  }

  void tell() {
    const auto tokens = static_cast<double>(tokens_of_step());
    const Spread seconds = spread_over(steps_, [](const Measured& s) { return s.seconds; });
    const Spread rate = spread_over(steps_, [&](const Measured& s) { return tokens / s.seconds; });
    const Spread peak = spread_over(steps_, [](const Measured& s) { return s.products; });
    const double mfu = flops_per_token_ * rate.median / peak.median;
    const DType dtype = engine_->parameters().compute_dtype();
    const std::string peak_name =
        fmt::format("{} products of all ranks, measured after each step", name_of(dtype));

    OrderedJson& result = report_["step"];
    result["recipe"] = options_.recipe;
    result["recipe_toml"] = to_toml(recipe_);
    result["attention"] = name_of(config_.attention);
    result["parameters"] = count_parameters(engine_->parameters().units());
    result["sequence_length"] = recipe_.data.sequence_length;
    result["global_batch"] = recipe_.train.global_batch;
    result["micro_batch"] = recipe_.train.micro_batch;
    result["tokens"] = tokens_of_step();
    result["synthetic"] = options_.synthetic;
    for (const Measured& step : steps_) result["losses"].push_back(step.loss);
    result["seconds"] = seconds;
    result["tokens_per_second"] = rate;
    result["tokens_per_second_per_rank"] = rate.median / ranks();
    result["model_flops_per_token"] = flops_per_token_;
    result["peak_flops_per_second"] = peak;
    result["peak"] = peak_name;
    result["mfu"] = mfu;

    fmt::print("{}: {} attention, {:.1f} million parameters, {} sequences of {} tokens a step\n\n",
               options_.recipe, name_of(config_.attention),
               static_cast<double>(count_parameters(engine_->parameters().units())) * 1e-6,
               recipe_.train.global_batch, recipe_.data.sequence_length);
    print_table(
        {{"median of steps", fmt::format("{}", steps_.size()), "min", "max"},
         {"tokens/s", fmt::format("{:.1f}", rate.median), fmt::format("{:.1f}", rate.min),
          fmt::format("{:.1f}", rate.max)},
         {"tokens/s/rank", fmt::format("{:.1f}", rate.median / ranks()),
          fmt::format("{:.1f}", rate.min / ranks()), fmt::format("{:.1f}", rate.max / ranks())},
         {"seconds", fmt::format("{:.3f}", seconds.median), fmt::format("{:.3f}", seconds.min),
          fmt::format("{:.3f}", seconds.max)},
         {"peak, GFLOP/s", fmt::format("{:.1f}", peak.median * 1e-9),
          fmt::format("{:.1f}", peak.min * 1e-9), fmt::format("{:.1f}", peak.max * 1e-9)}});
    fmt::print("model-flops utilisation: {:.1f}% of the {}\n", mfu * 100, peak_name);
    tell_phases(seconds.median);
    tell_ops(seconds.median);
    tell_memory();
    tell_traffic();
    report_.save(options_.json);
  }

  void tell_phases(double step_seconds) {
    std::vector<Cells> table{{"phase", "s", "share"}};
    for (size_t p = 0; p < phases; ++p) {
      const std::string name(name_of(static_cast<Phase>(p)));
      const Spread seconds = spread_over(steps_, [&](const Measured& s) { return s.phases[p]; });
      report_["step"]["phases"][name] = seconds;
      table.push_back({name, fmt::format("{:.3f}", seconds.median),
                       fmt::format("{:.1f}%", seconds.median / step_seconds * 100)});
    }
    fmt::print("\n");
    print_table(table);
  }

  void tell_ops(double step_seconds) {
    const std::vector<OpShare> shares = op_shares(step_seconds);
    OrderedJson& ops = report_["step"]["ops"] = OrderedJson::array();
    std::vector<Cells> table{
        {"op of rank 0", "calls", "ms", "share", "GFLOP/s", "GB/s", "of the ceiling"}};
    constexpr double worth_a_line = 0.003;
    double all = 0, flops = 0, others = 0;
    int64_t other_calls = 0;
    for (const OpShare& s : shares) {
      const double seconds = s.seconds.median;
      all += seconds;
      flops += s.time.flops;
      ops.push_back({{"op", s.time.op},
                     {"sizes", s.time.sizes},
                     {"calls", s.time.calls},
                     {"seconds", s.seconds},
                     {"share", s.share},
                     {"flops", s.time.flops},
                     {"bytes", s.time.bytes},
                     {"ceiling", s.reach.ceiling},
                     {"share_of_ceiling", s.reach.share}});
      if (s.share < worth_a_line) {
        others += seconds;
        other_calls += s.time.calls;
        continue;
      }
      table.push_back({fmt::format("{}, {}", s.time.op, s.time.sizes),
                       fmt::format("{}", s.time.calls), fmt::format("{:.1f}", seconds * 1e3),
                       fmt::format("{:.1f}%", s.share * 100),
                       s.time.flops > 0 ? fmt::format("{:.1f}", s.time.flops / seconds * 1e-9) : "",
                       fmt::format("{:.1f}", s.time.bytes / seconds * 1e-9),
                       fmt::format("{:.0f}% {}", s.reach.share * 100, s.reach.ceiling)});
    }
    const auto rest = [&](const char* name, const std::string& calls, double seconds) {
      table.push_back({name, calls, fmt::format("{:.1f}", seconds * 1e3),
                       fmt::format("{:.1f}%", seconds / step_seconds * 100), "", "", ""});
    };
    rest("other ops", fmt::format("{}", other_calls), others);
    rest("outside of ops", "", step_seconds - all);
    const auto tokens = static_cast<double>(tokens_of_step()) / ranks();
    report_["step"]["op_flops_per_token"] = flops / tokens;
    fmt::print("\n");
    print_table(table);
    fmt::print("computed: {:.3f} times the model's flops\n", flops / tokens / flops_per_token_);
  }

  void tell_memory() {
    OrderedJson& memory = report_["step"]["memory"];
    std::vector<Cells> table{{"memory of a rank", ""}};
    for (size_t c = 0; c < memory_classes; ++c) {
      const std::string name(name_of(static_cast<MemoryClass>(c)));
      memory["arena_bytes"][name] = plan_.table[c];
      table.push_back({name, format_bytes(plan_.table[c])});
    }
    memory["workspace_bytes"] = device_->workspace_bytes();
    memory["peak_resident_bytes"] = peak_memory_;
    table.push_back({"scratch of the ops", format_bytes(device_->workspace_bytes())});
    table.push_back({"peak of the process", format_bytes(peak_memory_)});
    fmt::print("\n");
    print_table(table);
  }

  void tell_traffic() {
    const Traffic& counted = steps_.back().traffic;
    const auto row = [](const Traffic& t) {
      return OrderedJson{{"gathered_bytes", t.gathered},
                         {"reduced_bytes", t.reduced},
                         {"host_bytes", t.host},
                         {"collectives", t.collectives}};
    };
    report_["step"]["traffic"] = row(counted);
    report_["step"]["least_traffic"] = {{"gathered_bytes", least_.gathered},
                                        {"reduced_bytes", least_.reduced}};
    const auto mebibytes = [](int64_t bytes) {
      return fmt::format("{:.2f} MiB", static_cast<double>(bytes) / (1 << 20));
    };
    fmt::print("\n");
    print_table({{"sent by a rank a step", "counted", "least of ZeRO-3"},
                 {"parameters", mebibytes(counted.gathered), mebibytes(least_.gathered)},
                 {"gradients", mebibytes(counted.reduced), mebibytes(least_.reduced)}});
  }

  MpiSession& session_;
  const StepOptions& options_;
  BenchReport& report_;
  std::unique_ptr<Communicator> host_;
  Recipe recipe_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> nccl_;
  std::unique_ptr<TimedDevice> timed_;
  std::unique_ptr<CountingCommunicator> counting_;
  std::unique_ptr<ModelFile> base_;
  ModelConfig config_;
  std::unique_ptr<Windows> windows_;
  MemoryPlan plan_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Engine> engine_;
  double flops_per_token_ = 0;
  Traffic least_;
  std::vector<Measured> steps_;
  std::vector<double> memory_rates_;  ///< of this rank
  size_t peak_memory_ = 0;            ///< of the rank that takes most
};

ExitCode bench_step(const StepOptions& options) {
  BenchReport report("step");
  return run_on_ranks([&](MpiSession& session) -> std::unique_ptr<RankProgram> {
    return std::make_unique<StepBench>(session, options, report);
  });
}

}  // namespace

void add_bench_step_command(CLI::App& bench, Action& action) {
  const auto o = std::make_shared<StepOptions>();
  CLI::App* command = bench.add_subcommand(
      "step",
      "The training step of a recipe, alone or under mpirun: tokens/s, utilisation, and where "
      "time, memory and traffic go. Writes no run folder.");
  command->add_option("RECIPE.toml", o->recipe, "Keys: docs/recipe-reference.md")->required();
  command->add_option("--set", o->overrides,
                      "section.key=value in place of what the recipe says; may be repeated");
  command->add_option("--steps", o->steps, "Steps measured; the median counts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--warmup", o->warmup, "Steps before them")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  command->add_flag("--synthetic", o->synthetic,
                    "Random tokens in place of the recipe's training file");
  add_json_option(*command, o->json);
  command->callback([o, &action] { action = [o] { return bench_step(*o); }; });
}

}  // namespace supra
