#include "parallel/preflight/check_nodes.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <map>
#include <thread>

#include <fmt/ranges.h>

#include "parallel/communication/communicator.h"
#include "parallel/hosts.h"
#include "parallel/preflight/bounded_messages.h"
#include "parallel/preflight/measure_host.h"
#include "parallel/preflight/measure_links.h"
#include "runtime/memory_rate.h"
#include "runtime/product_rate.h"

namespace supra {
namespace {

using Clock = std::chrono::steady_clock;
using Text = std::array<char, 256>;

Text to_text(const std::string& s) {
  Text text{};
  s.copy(text.data(), text.size() - 1);
  return text;
}

/// The best rate that `measure` finds in the second half of some time: by then a device that
/// throttles has begun to, and what else goes on in a machine only ever slows it.
template <class Measure>
double sustained(double seconds, const Measure& measure) {
  const auto began = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - began).count(); };
  double best = measure();
  while (elapsed() < seconds / 2) best = measure();
  while (elapsed() < seconds) best = std::max(best, measure());
  return best;
}

/// One check, on this rank. The report is complete on rank 0.
class Examination {
 public:
  Examination(Device& device, const NodeCheckOptions& options)
      : device_(device),
        options_(options),
        messages_(std::chrono::duration<double>(options.seconds + 30), largest_exchange) {}

  NodeCheck run() {
    try {
      find_hosts();
      measure_ranks();
      measure_disks();
      check_.report.links = measure_links(check_.report.ends, share(5), messages_);
    } catch (const NoAnswer& silence) {
      fail_silent(silence);
    }
    if (messages_.rank() == 0) conclude();
    share_conclusion();
    return std::move(check_);
  }

 private:
  /// Of ten parts of the time.
  double share(int parts) const { return options_.seconds * parts / 10; }

  void find_hosts() {
    NodeReport& report = check_.report;
    std::map<std::string, int> numbers;
    for (const Text& text : messages_.gather(std::vector<Text>{to_text(host_name())})) {
      const std::string name = text.data();
      const auto [found, is_new] = numbers.try_emplace(name, static_cast<int>(numbers.size()));
      if (is_new) {
        first_ranks_.push_back(static_cast<int>(report.ranks.size()));
        report.hosts.push_back({.name = name});
      }
      report.ranks.push_back({.host = found->second});
    }
    first_ranks_ = messages_.broadcast(first_ranks_);
    report.ends = first_ranks_;
    if (report.ends.size() == 1) {
      report.ends.resize(static_cast<size_t>(messages_.size()));
      for (int r = 0; r < messages_.size(); ++r) report.ends[static_cast<size_t>(r)] = r;
    }
  }

  void measure_ranks() {
    RankMeasures mine;
    mine.memory_available = static_cast<double>(device_.available_bytes());
    messages_.barrier();
    mine.product_rate =
        sustained(share(2), [&] { return measure_product_rate(device_, DType::bf16); });
    messages_.barrier();
    mine.memory_rate = sustained(share(1), [&] { return measure_memory_rate(device_); });
    mine.exact = computes_exactly(device_);
    const auto all = messages_.gather(std::vector<RankMeasures>{mine});
    for (size_t r = 0; r < all.size(); ++r) {
      const int host = check_.report.ranks[r].host;
      check_.report.ranks[r] = all[r];
      check_.report.ranks[r].host = host;
    }
  }

  /// One rank of each host; all ranks take part in the gathering.
  void measure_disks() {
    struct Disk {
      double rate = 0, sync_seconds = 0;
      bool measured = false;
      Text fault{};
    };
    messages_.barrier();
    Disk mine;
    if (std::find(first_ranks_.begin(), first_ranks_.end(), messages_.rank()) !=
        first_ranks_.end()) {
      HostMeasures host;
      measure_disk(options_.folder, share(2), host);
      mine = {host.disk_rate, host.sync_seconds, host.disk_measured, to_text(host.disk_fault)};
    }
    const std::vector<Disk> all = messages_.gather(std::vector<Disk>{mine});
    for (size_t i = 0; i < check_.report.hosts.size(); ++i) {
      const Disk& disk = all[static_cast<size_t>(first_ranks_[i])];
      HostMeasures& host = check_.report.hosts[i];
      host.disk_rate = disk.rate;
      host.sync_seconds = disk.sync_seconds;
      host.disk_measured = disk.measured;
      host.disk_fault = disk.fault.data();
    }
  }

  void conclude() {
    const NodeReport& report = check_.report;
    const auto faulty = [](const HostMeasures& host) { return !host.disk_fault.empty(); };
    check_.can_finish = std::none_of(report.links.begin(), report.links.end(),
                                     [](const Link& l) { return l.state == LinkState::silent; });
    if (std::all_of(report.hosts.begin(), report.hosts.end(), faulty)) {
      check_.code = ExitCode::bad_input;
      check_.message = report.hosts.front().disk_fault;
      return;
    }
    check_.verdict = judge(report, options_.tolerances);
    if (check_.verdict.blamed.empty()) return;
    check_.code = ExitCode::bad_node;
    std::vector<std::string> names, charges;
    for (const auto& [host, reason] : check_.verdict.blamed) {
      const std::string& name = report.hosts[static_cast<size_t>(host)].name;
      names.push_back(name);
      charges.push_back(fmt::format("{}: {}", name, reason));
      if (!options_.blame.empty()) blame_host(options_.blame, name, reason);
    }
    check_.message = fmt::format("leave out {} and start again; {}", fmt::join(names, ", "),
                                 fmt::join(charges, "; "));
  }

  void share_conclusion() {
    struct Outcome {
      ExitCode code;
      bool can_finish;
    };
    const auto outcome =
        messages_.broadcast(std::vector<Outcome>{{check_.code, check_.can_finish}});
    const std::vector<char> text =
        messages_.broadcast(std::vector<char>(check_.message.begin(), check_.message.end()));
    check_.code = outcome.front().code;
    check_.can_finish = outcome.front().can_finish;
    check_.message.assign(text.begin(), text.end());
  }

  [[noreturn]] void fail_silent(const NoAnswer& silence) const {
    const NodeReport& report = check_.report;
    if (report.ranks.empty()) throw silence;
    std::vector<std::string> names;
    for (const int rank : silence.ranks()) {
      const int host = report.ranks[static_cast<size_t>(rank)].host;
      const std::string& name = report.hosts[static_cast<size_t>(host)].name;
      if (std::find(names.begin(), names.end(), name) != names.end()) continue;
      names.push_back(name);
      if (!options_.blame.empty()) blame_host(options_.blame, name, silence.what());
    }
    throw Error(ExitCode::bad_node,
                fmt::format("{}: {}; leave out what does not answer and start again",
                            fmt::join(names, ", "), silence.what()));
  }

  Device& device_;
  const NodeCheckOptions& options_;
  BoundedMessages messages_;
  std::vector<int> first_ranks_;  ///< of each host
  NodeCheck check_;
};

}  // namespace

NodeCheck examine_nodes(Device& device, const NodeCheckOptions& options) {
  return Examination(device, options).run();
}

void require_good_nodes(const NodeCheck& check) {
  if (check.code == ExitCode::done) return;
  if (check.can_finish) throw AgreedError(check.code, check.message);
  // Whoever throws first ends all; rank 0 alone has the report.
  if (check.report.hosts.empty()) std::this_thread::sleep_for(std::chrono::seconds(5));
  throw Error(check.code, check.message);
}

void check_nodes(Device& device, const NodeCheckOptions& options) {
  require_good_nodes(examine_nodes(device, options));
}

}  // namespace supra
