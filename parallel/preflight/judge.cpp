#include <algorithm>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "parallel/preflight/node_report.h"

namespace supra {
namespace {

double upper_median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// What is said against each host.
class Charges {
 public:
  void add(int host, std::string reason) { by_host_[host].push_back(std::move(reason)); }
  std::vector<Blame> take() const {
    std::vector<Blame> blamed;
    for (const auto& [host, reasons] : by_host_) {
      blamed.push_back({host, fmt::format("{}", fmt::join(reasons, "; "))});
    }
    return blamed;
  }

 private:
  std::map<int, std::vector<std::string>> by_host_;
};

/// One measured quantity, larger when better, of whatever `host_of` and `subject_of` know by index.
struct Quantity {
  std::string_view name, unit;
  double scale;  ///< of the unit
  double tolerance;
};

template <class HostOf, class Say>
void charge_slow(const Quantity& quantity, const std::vector<double>& rates, Charges& charges,
                 const HostOf& host_of, const Say& subject_of) {
  if (rates.size() < 2) return;
  const double median = upper_median(rates);
  for (size_t i = 0; i < rates.size(); ++i) {
    if (rates[i] >= quantity.tolerance * median) continue;
    charges.add(host_of(i),
                fmt::format("{}{}: {:.3g} {}, the median is {:.3g}", quantity.name, subject_of(i),
                            rates[i] / quantity.scale, quantity.unit, median / quantity.scale));
  }
}

void judge_ranks(const NodeReport& report, const NodeTolerances& tolerances, Charges& charges) {
  const auto host_of = [&](size_t rank) { return report.ranks[rank].host; };
  const auto subject_of = [](size_t rank) { return fmt::format(" of rank {}", rank); };
  const auto compare = [&](const Quantity& quantity, double RankMeasures::*measure) {
    std::vector<double> rates;
    for (const RankMeasures& rank : report.ranks) rates.push_back(rank.*measure);
    charge_slow(quantity, rates, charges, host_of, subject_of);
  };
  for (size_t rank = 0; rank < report.ranks.size(); ++rank) {
    if (!report.ranks[rank].exact) {
      charges.add(host_of(rank), fmt::format("rank {} computes wrong products", rank));
    }
  }
  compare({"product rate", "TFLOP/s", 1e12, tolerances.steady}, &RankMeasures::product_rate);
  compare({"memory rate", "GB/s", 1e9, tolerances.steady}, &RankMeasures::memory_rate);
  compare({"available memory", "GiB", 0x1p30, tolerances.steady}, &RankMeasures::memory_available);
}

void judge_disks(const NodeReport& report, const NodeTolerances& tolerances, Charges& charges) {
  std::vector<double> rates, syncs;
  std::vector<int> hosts;
  for (size_t i = 0; i < report.hosts.size(); ++i) {
    const HostMeasures& host = report.hosts[i];
    if (!host.disk_fault.empty()) charges.add(static_cast<int>(i), host.disk_fault);
    if (!host.disk_measured) continue;
    hosts.push_back(static_cast<int>(i));
    rates.push_back(host.disk_rate);
    syncs.push_back(1 / host.sync_seconds);
  }
  const auto host_of = [&](size_t i) { return hosts[i]; };
  const auto nothing = [](size_t) { return ""; };
  charge_slow({"disk", "MB/s", 1e6, tolerances.varied}, rates, charges, host_of, nothing);
  charge_slow({"fsync", "a second", 1, tolerances.varied}, syncs, charges, host_of, nothing);
}

/// The links that are bad, each with what is bad about it, and who is to blame.
class LinkJudge {
 public:
  LinkJudge(const NodeReport& report, const NodeTolerances& tolerances)
      : report_(report), ends_(report.ends.size()), blamed_(ends_) {
    std::vector<double> best_rates(ends_), best_latencies(ends_);
    for (const Link& link : report.links) {
      if (link.state != LinkState::measured) continue;
      for (const int end : {link.a, link.b}) {
        const auto e = static_cast<size_t>(end);
        best_rates[e] = std::max(best_rates[e], link.rate);
        best_latencies[e] = std::max(best_latencies[e], 1 / link.latency);
      }
    }
    if (ends_ < 2) return;
    compares_ = report.hosts.size() > 1;
    const double rate = upper_median(best_rates), latency = upper_median(best_latencies);
    for (const Link& link : report.links) {
      if (const auto reason = fault(link, tolerances, rate, latency))
        bad_.push_back({link, *reason});
    }
  }

  void judge(Charges& charges, std::vector<std::string>& remarks) {
    while (const auto worst = most_guilty()) {
      blamed_[*worst] = true;
      std::vector<std::string> reasons;
      for (const Bad& bad : bad_) {
        const int other = bad.link.a == static_cast<int>(*worst) ? bad.link.b : bad.link.a;
        if (touches(bad.link, *worst) && !blamed_[static_cast<size_t>(other)]) {
          reasons.push_back(fmt::format("with {} {}", report_.name_of_end(other), bad.reason));
        }
      }
      const std::string subject =
          report_.hosts.size() == 1 ? " of " + report_.name_of_end(static_cast<int>(*worst)) : "";
      charge(charges, *worst, fmt::format("links{}: {}", subject, fmt::join(reasons, ", ")));
    }
    for (const Bad& bad : bad_) {
      if (is_explained(bad.link)) continue;
      const std::string text = fmt::format("link {} - {}: {}", report_.name_of_end(bad.link.a),
                                           report_.name_of_end(bad.link.b), bad.reason);
      if (bad.link.state == LinkState::measured) {
        remarks.push_back(text + ", while both are fast with others");
        continue;
      }
      for (const int end : {bad.link.a, bad.link.b})
        charge(charges, static_cast<size_t>(end), text);
    }
  }

 private:
  struct Bad {
    Link link;
    std::string reason;
  };

  std::optional<std::string> fault(const Link& link, const NodeTolerances& tolerances, double rate,
                                   double latency) const {
    if (link.state == LinkState::silent) return "no answer";
    if (link.state == LinkState::corrupt) return "other bytes arrive than were sent";
    if (!compares_) return std::nullopt;
    if (link.rate < tolerances.steady * rate) {
      return fmt::format("{:.3g} GB/s, the median is {:.3g}", link.rate / 1e9, rate / 1e9);
    }
    if (1 / link.latency < tolerances.varied * latency) {
      return fmt::format("latency {:.3g} us, the median is {:.3g}", link.latency * 1e6,
                         1e6 / latency);
    }
    return std::nullopt;
  }

  static bool touches(const Link& link, size_t end) {
    return link.a == static_cast<int>(end) || link.b == static_cast<int>(end);
  }
  bool is_explained(const Link& link) const {
    return blamed_[static_cast<size_t>(link.a)] || blamed_[static_cast<size_t>(link.b)];
  }

  /// The unblamed end with the most bad links to unblamed ends, if they are most of those it has
  /// and no other end has as good a claim to them.
  std::optional<size_t> most_guilty() const {
    std::vector<int> bad(ends_), all(ends_);
    for (const Link& link : report_.links) {
      if (is_explained(link)) continue;
      for (const int end : {link.a, link.b}) ++all[static_cast<size_t>(end)];
    }
    for (const Bad& b : bad_) {
      if (is_explained(b.link)) continue;
      for (const int end : {b.link.a, b.link.b}) ++bad[static_cast<size_t>(end)];
    }
    const auto worst = static_cast<size_t>(std::max_element(bad.begin(), bad.end()) - bad.begin());
    // Of two ends alone nobody can tell which is to blame.
    if (ends_ < 2 || all[worst] < 2 || 2 * bad[worst] <= all[worst]) return std::nullopt;
    return worst;
  }

  void charge(Charges& charges, size_t end, std::string reason) const {
    const auto rank = static_cast<size_t>(report_.ends[end]);
    charges.add(report_.ranks[rank].host, std::move(reason));
  }

  const NodeReport& report_;
  size_t ends_;
  bool compares_ = false;
  std::vector<bool> blamed_;
  std::vector<Bad> bad_;
};

}  // namespace

std::string NodeReport::name_of_end(int end) const {
  const int rank = ends[static_cast<size_t>(end)];
  if (hosts.size() == 1) return fmt::format("rank {}", rank);
  return hosts[static_cast<size_t>(ranks[static_cast<size_t>(rank)].host)].name;
}

Verdict judge(const NodeReport& report, const NodeTolerances& tolerances) {
  Charges charges;
  Verdict verdict;
  judge_ranks(report, tolerances, charges);
  judge_disks(report, tolerances, charges);
  LinkJudge(report, tolerances).judge(charges, verdict.remarks);
  verdict.blamed = charges.take();
  return verdict;
}

}  // namespace supra
