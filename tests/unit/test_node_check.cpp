// The preflight's conclusions from made-up measurements, and its tournament.

#include <cmath>
#include <map>

#include <doctest/doctest.h>

#include "parallel/hosts.h"
#include "parallel/preflight/measure_host.h"
#include "parallel/preflight/measure_links.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;

namespace {

/// Hosts "a", "b", ... of two ranks each, all equally fast.
NodeReport equal_hosts(int hosts) {
  NodeReport report;
  for (int h = 0; h < hosts; ++h) {
    report.hosts.push_back({.name = std::string(1, static_cast<char>('a' + h)),
                            .disk_measured = true,
                            .disk_rate = 1e9,
                            .sync_seconds = 1e-3});
    report.ends.push_back(static_cast<int>(report.ranks.size()));
    for (int r = 0; r < 2; ++r) {
      report.ranks.push_back({.host = h,
                              .product_rate = 5e14,
                              .memory_rate = 2e12,
                              .memory_available = 0x1p36,
                              .exact = true});
    }
    for (int other = 0; other < h; ++other) {
      report.links.push_back({.a = other, .b = h, .latency = 2e-6, .rate = 2e10});
    }
  }
  return report;
}

Link& link_of(NodeReport& report, int a, int b) {
  for (Link& link : report.links) {
    if (link.a == a && link.b == b) return link;
  }
  FAIL("no link between " << a << " and " << b);
  return report.links.front();
}

/// Makes the links of a host slower.
void slow_down(NodeReport& report, int host, double factor) {
  for (Link& link : report.links) {
    if (link.a == host || link.b == host) link.rate *= factor;
  }
}

std::string blamed(const NodeReport& report, const NodeTolerances& tolerances = {}) {
  std::string names;
  for (const Blame& blame : judge(report, tolerances).blamed) {
    names += report.hosts[static_cast<size_t>(blame.host)].name;
  }
  return names;
}

std::string reason(const NodeReport& report) {
  const Verdict verdict = judge(report, {});
  REQUIRE(verdict.blamed.size() == 1);
  return verdict.blamed.front().reason;
}

/// The CPU device, but what is read from it has one wrong element.
class FaultyDevice final : public Device {
 public:
  explicit FaultyDevice(float wrong_by) : wrong_by_(wrong_by) {}
  std::string description() const override { return "faulty"; }
  Ops& ops() override { return cpu_->ops(); }
  void* allocate(size_t bytes) override { return cpu_->allocate(bytes); }
  void release(void* address, size_t bytes) noexcept override { cpu_->release(address, bytes); }
  void copy_in(const void* host, const Tensor& to) override { cpu_->copy_in(host, to); }
  void copy_out(const Tensor& from, void* host) override {
    cpu_->copy_out(from, host);
    if (from.dtype() == DType::fp32) static_cast<float*>(host)[from.numel() / 3] += wrong_by_;
  }
  void poison(const Tensor& t) override { cpu_->poison(t); }
  void synchronize() override { cpu_->synchronize(); }
  size_t available_bytes() const override { return cpu_->available_bytes(); }
  size_t workspace_bytes() const override { return cpu_->workspace_bytes(); }

 private:
  std::unique_ptr<Device> cpu_ = make_cpu_device(1);
  float wrong_by_;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("node check: equal hosts are all good, however many") {
  for (int hosts = 1; hosts <= 6; ++hosts) CHECK(blamed(equal_hosts(hosts)).empty());
}

TEST_CASE("node check: a slow rank's host is named, with the rank, what is slow and the median") {
  for (int hosts = 2; hosts <= 5; ++hosts) {
    NodeReport report = equal_hosts(hosts);
    report.ranks[3].product_rate *= 0.5;
    CHECK(blamed(report) == "b");
    CHECK(reason(report) == "product rate of rank 3: 250 TFLOP/s, the median is 500");
  }
  NodeReport report = equal_hosts(3);
  report.ranks[4].memory_rate *= 0.6;
  CHECK(contains(reason(report), "memory rate of rank 4"));
  report = equal_hosts(3);
  report.ranks[0].memory_available *= 0.1;
  CHECK(contains(reason(report), "available memory of rank 0"));
}

TEST_CASE("node check: the tolerance is the least share of the median that passes") {
  NodeReport report = equal_hosts(4);
  report.ranks[7].product_rate *= 0.71;
  CHECK(blamed(report).empty());
  CHECK(blamed(report, {.steady = 0.72}) == "d");
  report = equal_hosts(4);
  report.hosts[1].disk_rate *= 0.5;
  report.hosts[2].sync_seconds *= 2;
  CHECK(blamed(report).empty());
  CHECK(blamed(report, {.varied = 0.51}) == "bc");
}

TEST_CASE("node check: a rank whose products are wrong is named, however fast") {
  NodeReport report = equal_hosts(2);
  report.ranks[1].exact = false;
  report.ranks[1].product_rate *= 2;
  CHECK(blamed(report) == "a");
  CHECK(reason(report) == "rank 1 computes wrong products");
}

TEST_CASE("node check: a slow or broken disk is named") {
  NodeReport report = equal_hosts(3);
  report.hosts[2].disk_rate *= 0.1;
  CHECK(blamed(report) == "c");
  CHECK(contains(reason(report), "disk: 100 MB/s, the median is 1e+03"));
  report = equal_hosts(3);
  report.hosts[0].sync_seconds *= 10;
  CHECK(contains(reason(report), "fsync: 100 a second"));
  report = equal_hosts(3);
  report.hosts[1] = {.name = "b", .disk_fault = "can't create x"};
  CHECK(blamed(report) == "b");
  CHECK(reason(report) == "can't create x");
}

TEST_CASE("node check: of slow links the end they have in common is named, not its partners") {
  for (int hosts = 3; hosts <= 6; ++hosts) {
    for (int bad = 0; bad < hosts; ++bad) {
      NodeReport report = equal_hosts(hosts);
      slow_down(report, bad, 0.1);
      CHECK(blamed(report) == report.hosts[static_cast<size_t>(bad)].name);
      CHECK(judge(report, {}).remarks.empty());
    }
  }
  NodeReport report = equal_hosts(6);
  slow_down(report, 1, 0.5);
  slow_down(report, 4, 0.1);
  CHECK(blamed(report) == "be");
}

TEST_CASE("node check: high latency counts as a slow link") {
  NodeReport report = equal_hosts(4);
  for (const int other : {0, 1, 2}) link_of(report, other, 3).latency *= 20;
  CHECK(blamed(report) == "d");
  CHECK(contains(reason(report), "with a latency 40 us, the median is 2"));
}

TEST_CASE("node check: one slow link between hosts that are fast with others is a remark") {
  NodeReport report = equal_hosts(4);
  link_of(report, 0, 2).rate *= 0.1;
  const Verdict verdict = judge(report, {});
  CHECK(verdict.blamed.empty());
  REQUIRE(verdict.remarks.size() == 1);
  CHECK(contains(verdict.remarks.front(), "link a - c: 2 GB/s, the median is 20"));
}

TEST_CASE("node check: a link that is silent or corrupt is blamed on the host that explains most") {
  for (const LinkState state : {LinkState::silent, LinkState::corrupt}) {
    NodeReport report = equal_hosts(4);
    for (const int other : {2, 3}) link_of(report, 1, other).state = state;
    link_of(report, 0, 1).state = state;
    CHECK(blamed(report) == "b");
    report = equal_hosts(4);
    link_of(report, 0, 3).state = state;
    CHECK(blamed(report) == "ad");
    report = equal_hosts(2);
    link_of(report, 0, 1).state = state;
    CHECK(blamed(report) == "ab");
  }
}

TEST_CASE("node check: of two hosts with a slow link between them nobody can be named") {
  NodeReport report = equal_hosts(2);
  slow_down(report, 0, 0.01);
  CHECK(blamed(report).empty());
}

TEST_CASE("node check: on a single host the links between ranks must only be right") {
  NodeReport report = equal_hosts(1);
  report.ranks.resize(4, report.ranks.front());
  report.ends = {0, 1, 2, 3};
  for (int b = 1; b < 4; ++b) {
    for (int a = 0; a < b; ++a) {
      const double rate = a == 1 || b == 1 ? 1e9 : 9e9;
      report.links.push_back({.a = a, .b = b, .latency = 1e-6, .rate = rate});
    }
  }
  CHECK(blamed(report).empty());
  for (Link& link : report.links) {
    if (link.a == 1 || link.b == 1) link.state = LinkState::corrupt;
  }
  CHECK(blamed(report) == "a");
  CHECK(contains(reason(report), "links of rank 1: with rank 0 other bytes arrive than were sent"));
}

TEST_CASE("node check: in a tournament each player meets each other once, one in a round") {
  for (int players = 1; players <= 9; ++players) {
    std::map<std::pair<int, int>, int> met;
    for (int round = 0; round < tournament_rounds(players); ++round) {
      for (int player = 0; player < players; ++player) {
        const auto opponent = tournament_opponent(players, player, round);
        if (!opponent) continue;
        CHECK(*opponent != player);
        CHECK(tournament_opponent(players, *opponent, round) == player);
        ++met[{player, *opponent}];
      }
    }
    CHECK(met.size() == static_cast<size_t>(players * (players - 1)));
    for (const auto& [pair, times] : met) CHECK(times == 1);
  }
}

TEST_CASE("node check: a disk is measured in the folder it is asked about, and left as it was") {
  const TemporaryFolder folder;
  HostMeasures host;
  measure_disk(folder.path(), 0.01, host);
  CHECK(host.disk_fault.empty());
  CHECK(host.disk_measured);
  CHECK(host.disk_rate > 0);
  CHECK(host.sync_seconds > 0);
  CHECK(std::filesystem::is_empty(folder.path()));
  HostMeasures nowhere;
  measure_disk(folder / "nowhere", 0.01, nowhere);
  CHECK(!nowhere.disk_measured);
  CHECK(contains(nowhere.disk_fault, "nowhere"));
}

TEST_CASE("node check: a single wrong element of a product is noticed") {
  const auto good = make_cpu_device(2);
  CHECK(computes_exactly(*good));
  for (const float wrong_by : {1.0F, 0.5F, 1e6F, NAN, INFINITY}) {
    FaultyDevice faulty(wrong_by);
    CHECK(!computes_exactly(faulty));
  }
}
