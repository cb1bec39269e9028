// `supra bench collectives`: what a Communicator offers, on the ranks it is started with, over
// sizes from where latency counts to where bandwidth does. All calls take turns, round after round.
// Algorithm and bus bandwidth are those of NCCL's tests: size / time, and of that the share which
// has to leave a rank, (n - 1) / n; of a broadcast all of it.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "launch/bench/bench.h"
#include "launch/bench/report.h"
#include "launch/bench/spread.h"
#include "launch/ranks.h"
#include "launch/report/table.h"
#include "parallel/communication/nccl_communicator.h"

namespace supra {
namespace {

using OrderedJson = nlohmann::ordered_json;

enum class Collective : uint8_t { all_gather, reduce_scatter, all_gather_host, broadcast_host };

constexpr std::string_view name_of(Collective c) {
  switch (c) {
    case Collective::all_gather:
      return "all_gather";
    case Collective::reduce_scatter:
      return "reduce_scatter";
    case Collective::all_gather_host:
      return "all_gather_host";
    case Collective::broadcast_host:
      return "broadcast_host";
  }
  return "?";
}

struct CollectivesOptions {
  std::string device = "cpu", json;
  int64_t smallest = int64_t{1} << 10, largest = int64_t{1} << 28, factor = 4;
  int rounds = 5;
  double seconds = 0.05;  ///< of a turn
};

/// A collective of one size, and what was measured of it.
struct Case {
  Collective collective;
  int64_t shard;      ///< elements, fp32
  int64_t calls = 0;  ///< of a turn
  std::vector<double> seconds = {};
};

class CollectivesBench final : public RankProgram {
 public:
  CollectivesBench(MpiSession& session, const CollectivesOptions& options, BenchReport& report)
      : session_(session),
        options_(options),
        report_(report),
        host_(make_mpi_communicator()),
        ranks_(host_->size()) {}

  ExitCode run() override {
    together(*host_, [&] { open(); });
    communicator_ =
        options_.device == "cuda" ? make_nccl_communicator(*device_) : make_mpi_communicator();
    together(*host_, [&] { prepare(); });
    for (Case& each : cases_) {
      check_result(each);
      each.calls = std::clamp<int64_t>(std::llround(options_.seconds / time(each, 1)), 1, 10000);
    }
    for (int round = 0; round < options_.rounds; ++round) {
      for (Case& each : cases_) each.seconds.push_back(time(each, each.calls));
    }
    together(*host_, [&] {
      if (host_->rank() == 0) tell();
    });
    return ExitCode::done;
  }

 private:
  void open() {
    device_ = options_.device == "cuda" ? make_cuda_device(session_.rank_on_host())
                                        : make_cpu_device(session_.threads());
    if (host_->rank() == 0) report_.introduce(*device_, ranks_, session_.ranks_on_host());
    if (options_.smallest > options_.largest) {
      fail_input("--min {} is more than --max {}", options_.smallest, options_.largest);
    }
  }

  /// Elements of a shard, when those of all ranks together have this many bytes.
  int64_t shard_of(int64_t bytes) const {
    return std::max<int64_t>(1, bytes / (ranks_ * static_cast<int64_t>(sizeof(float))));
  }

  void prepare() {
    // On the device the whole, a shard, and as much as the whole to add up from; on the host it
    // once more.
    const auto needed = [&](int64_t bytes) {
      return static_cast<size_t>((3 * ranks_ + 1) * shard_of(bytes)) * sizeof(float);
    };
    // No more than half of what there is.
    const size_t free =
        device_->available_bytes() / 2 / static_cast<size_t>(session_.ranks_on_host());
    int64_t largest = options_.largest;
    while (free && largest > options_.smallest && needed(largest) > free) largest /= 2;

    const int64_t elements = shard_of(largest) * ranks_;
    arena_ = std::make_unique<Arena>(*device_, needed(largest) + 4 * Arena::alignment);
    const auto flat = [&](int64_t n) {
      return arena_->allocate(MemoryClass::communication, DType::fp32, {n});
    };
    full_ = flat(elements);
    shard_ = flat(shard_of(largest));
    device_->ops().zero(full_);
    device_->ops().zero(shard_);
    communicator_->reserve(device_->ops(), *arena_, elements);
    host_full_.resize(static_cast<size_t>(elements));
    host_shard_.resize(static_cast<size_t>(shard_of(largest)));
    constexpr int64_t largest_of_host = int64_t{1} << 20;  // host data are small by their nature
    for (const Collective c : {Collective::all_gather, Collective::reduce_scatter,
                               Collective::all_gather_host, Collective::broadcast_host}) {
      const bool host = c == Collective::all_gather_host || c == Collective::broadcast_host;
      const int64_t end = host ? std::min(largest, largest_of_host) : largest;
      for (int64_t bytes = options_.smallest; bytes <= end; bytes *= options_.factor) {
        cases_.push_back({.collective = c, .shard = shard_of(bytes)});
      }
    }
  }

  void call(const Case& each) {
    const Tensor full = full_.slice(0, each.shard * ranks_), shard = shard_.slice(0, each.shard);
    switch (each.collective) {
      case Collective::all_gather:
        return communicator_->all_gather(shard, full).wait();
      case Collective::reduce_scatter:
        return communicator_->reduce_scatter(full, shard).wait();
      case Collective::all_gather_host:
        return communicator_->all_gather_host(host_shard_.data(), shard.bytes(), host_full_.data());
      case Collective::broadcast_host:
        return communicator_->broadcast_host(host_full_.data(), full.bytes(), 0);
    }
  }

  /// Whether the device's collectives move and add the right numbers: integers, whose sums are
  /// exact in any order.
  void check_result(const Case& each) {
    const int64_t n = each.shard, rank = host_->rank();
    const auto share = [&](int64_t from, int64_t to) {
      return static_cast<float>((from + 1) * (to + 1));
    };
    int64_t wrong = 0;
    if (each.collective == Collective::all_gather) {
      std::fill_n(host_shard_.begin(), n, share(rank, 0));
      device_->copy_in(host_shard_.data(), shard_.slice(0, n));
      call(each);
      device_->copy_out(full_.slice(0, n * ranks_), host_full_.data());
      for (int64_t i = 0; i < n * ranks_; ++i) {
        wrong += host_full_[static_cast<size_t>(i)] != share(i / n, 0);
      }
    } else if (each.collective == Collective::reduce_scatter) {
      for (int64_t i = 0; i < n * ranks_; ++i) {
        host_full_[static_cast<size_t>(i)] = share(rank, i / n);
      }
      device_->copy_in(host_full_.data(), full_.slice(0, n * ranks_));
      call(each);
      device_->copy_out(shard_.slice(0, n), host_shard_.data());
      const float sum = share(rank, 0) * static_cast<float>(ranks_ * (ranks_ + 1) / 2);
      wrong = n - std::count(host_shard_.begin(), host_shard_.begin() + n, sum);
    }
    together(*host_, [&] {
      if (wrong > 0) {
        fail_internal("{} of {} bytes a rank leaves {} wrong numbers", name_of(each.collective),
                      n * static_cast<int64_t>(sizeof(float)), wrong);
      }
    });
  }

  /// Seconds of a call, of the slowest rank: the mean of `calls`, after one to warm up.
  double time(const Case& each, int64_t calls) {
    using Clock = std::chrono::steady_clock;
    call(each);
    device_->synchronize();
    host_->gather_values(0);  // all begin together
    const auto began = Clock::now();
    for (int64_t i = 0; i < calls; ++i) call(each);
    device_->synchronize();
    const std::chrono::duration<double> elapsed = Clock::now() - began;
    const auto all = host_->gather_values(elapsed.count() / static_cast<double>(calls));
    return *std::max_element(all.begin(), all.end());
  }

  void tell() {
    OrderedJson& results = report_["results"] = OrderedJson::array();
    std::vector<Cells> table{
        {"collective", "bytes", "us", "min", "max", "algbw GB/s", "busbw GB/s"}};
    for (const Case& each : cases_) {
      const int64_t bytes = each.shard * ranks_ * static_cast<int64_t>(sizeof(float));
      const Spread seconds = spread_of(each.seconds);
      const double algorithm = static_cast<double>(bytes) / seconds.median;
      const double bus = each.collective == Collective::broadcast_host
                             ? algorithm
                             : algorithm * (ranks_ - 1) / ranks_;
      results.push_back({{"collective", name_of(each.collective)},
                         {"bytes", bytes},
                         {"seconds", seconds},
                         {"algorithm_bytes_per_second", algorithm},
                         {"bus_bytes_per_second", bus}});
      table.push_back({std::string(name_of(each.collective)), fmt::format("{}", bytes),
                       fmt::format("{:.1f}", seconds.median * 1e6),
                       fmt::format("{:.1f}", seconds.min * 1e6),
                       fmt::format("{:.1f}", seconds.max * 1e6),
                       fmt::format("{:.3f}", algorithm * 1e-9), fmt::format("{:.3f}", bus * 1e-9)});
    }
    print_table(table);
    report_.save(options_.json);
  }

  MpiSession& session_;
  const CollectivesOptions& options_;
  BenchReport& report_;
  std::unique_ptr<Communicator> host_;
  int ranks_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> communicator_;
  std::unique_ptr<Arena> arena_;
  Tensor full_, shard_;
  std::vector<float> host_full_, host_shard_;
  std::vector<Case> cases_;
};

}  // namespace

void add_bench_collectives_command(CLI::App& bench, Action& action) {
  const auto o = std::make_shared<CollectivesOptions>();
  CLI::App* command = bench.add_subcommand(
      "collectives", "Time and bandwidth of the collectives of a step, under mpirun or srun.");
  constexpr int64_t most = int64_t{1} << 32;
  command->add_option("--min", o->smallest, "Bytes of the smallest, of all ranks together")
      ->check(CLI::Range(int64_t{4}, most))
      ->capture_default_str();
  command->add_option("--max", o->largest, "Bytes of the largest; fewer where memory is short")
      ->check(CLI::Range(int64_t{4}, most))
      ->capture_default_str();
  command->add_option("--factor", o->factor, "From one size to the next")
      ->check(CLI::Range(2, 1024))
      ->capture_default_str();
  command->add_option("--device", o->device, "cpu with MPI, or cuda with NCCL")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  add_turn_options(*command, o->rounds, o->seconds);
  add_json_option(*command, o->json);
  command->callback([o, &action] {
    action = [o] {
      BenchReport report("collectives");
      return run_on_ranks([&](MpiSession& session) -> std::unique_ptr<RankProgram> {
        return std::make_unique<CollectivesBench>(session, *o, report);
      });
    };
  });
}

}  // namespace supra
