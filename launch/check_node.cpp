#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include <nlohmann/json.hpp>

#include "launch/commands.h"
#include "launch/ranks.h"
#include "launch/report/run_log.h"
#include "launch/report/table.h"
#include "parallel/hosts.h"
#include "parallel/preflight/check_nodes.h"
#include "parallel/preflight/measure_host.h"

namespace supra {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct CheckNodeCommand {
  std::string folder, device = "cpu";
  NodeCheckOptions check;
  bool json = false;
};

std::string_view name_of(LinkState state) {
  switch (state) {
    case LinkState::measured:
      return "measured";
    case LinkState::silent:
      return "silent";
    case LinkState::corrupt:
      return "corrupt";
  }
  return "?";
}

OrderedJson to_json(const NodeCheck& check) {
  const NodeReport& report = check.report;
  const auto host_name = [&](int host) { return report.hosts[static_cast<size_t>(host)].name; };
  OrderedJson json;
  for (const char* list : {"hosts", "ranks", "links", "blamed"}) json[list] = OrderedJson::array();
  for (const HostMeasures& host : report.hosts) {
    OrderedJson entry{{"host", host.name}};
    if (host.disk_measured) {
      entry["disk_bytes_per_second"] = host.disk_rate;
      entry["fsync_seconds"] = host.sync_seconds;
    }
    if (!host.disk_fault.empty()) entry["disk_fault"] = host.disk_fault;
    json["hosts"].push_back(std::move(entry));
  }
  for (const RankMeasures& rank : report.ranks) {
    json["ranks"].push_back({{"host", host_name(rank.host)},
                             {"product_flops_per_second", rank.product_rate},
                             {"memory_bytes_per_second", rank.memory_rate},
                             {"memory_available_bytes", rank.memory_available},
                             {"exact", rank.exact}});
  }
  for (const Link& link : report.links) {
    json["links"].push_back({{"ends", {report.name_of_end(link.a), report.name_of_end(link.b)}},
                             {"state", name_of(link.state)},
                             {"latency_seconds", link.latency},
                             {"bytes_per_second", link.rate}});
  }
  for (const Blame& blame : check.verdict.blamed) {
    json["blamed"].push_back({{"host", host_name(blame.host)}, {"reason", blame.reason}});
  }
  json["remarks"] = check.verdict.remarks;
  return json;
}

/// Of the links of an end, the one with the least of `measure`.
template <class Measure>
std::optional<Link> worst_link(const NodeReport& report, int end, const Measure& measure) {
  std::optional<Link> worst;
  for (const Link& link : report.links) {
    if (link.a != end && link.b != end) continue;
    if (!worst || measure(link) < measure(*worst)) worst = link;
  }
  return worst;
}

/// One row: a host, or on a single host a rank, with the least that its ranks reach.
Cells cells_of_end(const NodeReport& report, int end) {
  const auto end_rank = static_cast<size_t>(report.ends[static_cast<size_t>(end)]);
  const int host_number = report.ranks[end_rank].host;
  const HostMeasures& host = report.hosts[static_cast<size_t>(host_number)];
  RankMeasures least = report.ranks[end_rank];
  for (const RankMeasures& rank : report.ranks) {
    if (report.hosts.size() == 1 || rank.host != host_number) continue;
    least.product_rate = std::min(least.product_rate, rank.product_rate);
    least.memory_rate = std::min(least.memory_rate, rank.memory_rate);
    least.memory_available = std::min(least.memory_available, rank.memory_available);
    least.exact = least.exact && rank.exact;
  }
  const auto link_cell = [&](const std::optional<Link>& link, double value, std::string_view unit) {
    if (!link) return std::string("-");
    const std::string other = report.name_of_end(link->a == end ? link->b : link->a);
    if (link->state != LinkState::measured) {
      return fmt::format("{} with {}", name_of(link->state), other);
    }
    return fmt::format("{:.3g} {} with {}", value, unit, other);
  };
  const auto slowest = worst_link(report, end, [](const Link& l) { return l.rate; });
  const auto longest = worst_link(report, end, [](const Link& l) { return -l.latency; });
  return {report.name_of_end(end),
          least.exact ? fmt::format("{:.3g} TFLOP/s", least.product_rate / 1e12) : "wrong",
          fmt::format("{:.3g} GB/s", least.memory_rate / 1e9),
          format_bytes(static_cast<size_t>(least.memory_available)),
          host.disk_measured ? fmt::format("{:.3g} MB/s", host.disk_rate / 1e6) : "-",
          host.disk_measured ? fmt::format("{:.3g} ms", host.sync_seconds * 1e3) : "-",
          link_cell(slowest, slowest ? slowest->rate / 1e9 : 0, "GB/s"),
          link_cell(longest, longest ? longest->latency * 1e6 : 0, "us")};
}

void print(const NodeCheck& check, const std::string& device) {
  const NodeReport& report = check.report;
  fmt::print("{} rank{} on {} host{}, each: {}\n\n", report.ranks.size(),
             report.ranks.size() == 1 ? "" : "s", report.hosts.size(),
             report.hosts.size() == 1 ? "" : "s", device);
  std::vector<Cells> table{{report.hosts.size() == 1 ? report.hosts.front().name : "host",
                            "products", "memory", "available", "disk", "fsync", "slowest link",
                            "highest latency"}};
  for (size_t end = 0; end < report.ends.size(); ++end) {
    table.push_back(cells_of_end(report, static_cast<int>(end)));
  }
  print_table(table);
  fmt::print("\n");
  for (const std::string& remark : check.verdict.remarks) fmt::print("{}\n", remark);
  if (check.code == ExitCode::done) fmt::print("no host is slow or wrong\n");
}

/// Ends the process with ExitCode::bad_node unless it goes in time: MPI itself waits for ever, in
/// its start and its collectives, for a host that cannot be reached.
class TimeLimit {
 public:
  explicit TimeLimit(std::chrono::duration<double> limit)
      : thread_([this, limit](const std::stop_token& stop) {
          std::unique_lock lock(mutex_);
          if (stopped_.wait_for(lock, stop, limit, [&] { return stop.stop_requested(); })) return;
          fmt::print(stderr,
                     "supra: {}: MPI has not brought the ranks together in {:.0f} s: some host or "
                     "link does not answer\n",
                     host_name(), limit.count());
          std::_Exit(static_cast<int>(ExitCode::bad_node));
        }) {}

 private:
  std::mutex mutex_;
  std::condition_variable_any stopped_;
  std::jthread thread_;
};

ExitCode run_check_node(const CheckNodeCommand& command, MpiSession& session) {
  const std::unique_ptr<Device> device = command.device == "cuda"
                                             ? make_cuda_device(session.rank_on_host())
                                             : make_cpu_device(session.threads());
  NodeCheckOptions options = command.check;
  options.folder = command.folder.empty() ? "." : command.folder;
  options.blame = command.folder;
  const NodeCheck check = examine_nodes(*device, options);
  if (session.rank() == 0 && check.code != ExitCode::bad_input) {
    if (command.json) {
      fmt::print("{}\n", to_json(check).dump());
    } else {
      print(check, device->description());
    }
  }
  require_good_nodes(check);
  return ExitCode::done;
}

}  // namespace

void add_check_node_command(CLI::App& app, Action& action) {
  const auto o = std::make_shared<CheckNodeCommand>();
  CLI::App* command = app.add_subcommand(
      "check-node",
      "Measure hosts and the links between them, alone or under mpirun or srun; name the slow and "
      "the wrong ones and end with exit code 5.");
  command->add_option("--folder", o->folder,
                      "Run folder: its disk is measured, and blamed hosts are appended to its file "
                      "blamed-nodes. Without it the disk of the current folder is measured");
  command->add_option("--seconds", o->check.seconds, "How long to measure, about")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command
      ->add_option("--tolerance", o->check.tolerances.steady,
                   "Least share of the median that passes: products, memory, bandwidth")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command
      ->add_option("--varied-tolerance", o->check.tolerances.varied,
                   "The same for disks and latencies, which vary by their nature")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--device", o->device, "What computes: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->add_flag("--json", o->json, "Print one JSON object");
  command->callback([o, &action] {
    action = [o] {
      // Longer than all that BoundedMessages waits for.
      const TimeLimit limit(std::chrono::duration<double>(2 * o->check.seconds + 90));
      return run_on_ranks([&](MpiSession& session) { return run_check_node(*o, session); });
    };
  });
}

}  // namespace supra
