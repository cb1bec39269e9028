#include "launch/bench/report.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sys/resource.h>
#include <thread>
#include <unistd.h>

#include <fmt/chrono.h>

#include "launch/report/run_log.h"
#include "parallel/hosts.h"
#include "runtime/cpu/gemm/gemm.h"

namespace supra {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr std::string_view compiler =
#ifdef __clang__
    "clang " __clang_version__;
#else
    "g++ " __VERSION__;
#endif

/// The program's own arguments, as it was started.
std::vector<std::string> command_line() {
  std::ifstream file("/proc/self/cmdline");
  std::vector<std::string> arguments;
  for (std::string argument; std::getline(file, argument, '\0');) arguments.push_back(argument);
  return arguments;
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
}

OrderedJson load_average() {
  std::ifstream file("/proc/loadavg");
  double one = 0, five = 0, fifteen = 0;
  file >> one >> five >> fifteen;
  return {one, five, fifteen};
}

/// Seconds that all cores together have spent on programs since the machine was started.
double busy_seconds() {
  std::ifstream file("/proc/stat");
  std::string cpu;
  double user = 0, nice = 0, system = 0;
  file >> cpu >> user >> nice >> system;
  return (user + nice + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

/// Seconds that this process has spent.
double own_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// Other programs as busy as this change what is measured.
constexpr double noticeable_cores = 0.25;

OrderedJson describe_machine() {
  return {{"host", host_name()},
          {"cpu", cpu_model()},
          {"cores", ::sysconf(_SC_NPROCESSORS_ONLN)},
          {"memory_bytes", ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE)},
          {"instruction_set", cpu::gemm_isa()},
          {"load_average", load_average()}};
}

OrderedJson describe_program() {
  return {{"commit", run_commit()},
          {"compiler", compiler},
          {"build_type", SUPRA_BUILD_TYPE},
          {"command", command_line()}};
}

void warn_of_others(double busy_cores, std::string_view verb, std::string_view measured) {
  if (busy_cores < noticeable_cores) return;
  std::fflush(stdout);
  fmt::print(stderr, "supra: other programs {} {:.1f} cores busy: {} too slow\n", verb, busy_cores,
             measured);
}

}  // namespace

BenchReport::BenchReport(const std::string& bench) {
  json_["format"] = "supra-bench 1";
  json_["bench"] = bench;
  json_["date"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  json_["program"] = describe_program();
  json_["machine"] = describe_machine();
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  json_["machine"]["busy_cores_before"] = busy_cores_of_others();
}

BenchReport::Busy BenchReport::Busy::now() {
  return {std::chrono::steady_clock::now(), busy_seconds(), own_seconds()};
}

double BenchReport::busy_cores_of_others() {
  const Busy now = Busy::now();
  const double elapsed = std::chrono::duration<double>(now.at - last_.at).count();
  const double others = now.all - last_.all - ranks_on_host_ * (now.own - last_.own);
  last_ = now;
  return std::max(0.0, others) / elapsed;
}

void BenchReport::introduce(const Device& device, int ranks, int ranks_on_host) {
  ranks_on_host_ = ranks_on_host;
  OrderedJson& machine = json_["machine"];
  machine["device"] = device.description();
  machine["ranks"] = ranks;
  fmt::print("{} rank{} of {}; {}; commit {}\n", ranks, ranks == 1 ? "" : "s", device.description(),
             machine["cpu"].get<std::string>(), run_commit());
  std::fflush(stdout);  // what follows takes long
  warn_of_others(machine["busy_cores_before"], "keep", "what is measured beside them will be");
}

void BenchReport::save(const std::string& path) {
  json_["machine"]["busy_cores_meanwhile"] = busy_cores_of_others();
  warn_of_others(json_["machine"]["busy_cores_meanwhile"], "kept",
                 "what was measured beside them is");
  if (path.empty()) return;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << json_.dump(1) << '\n';
  file.close();
  if (!file) fail_input("cannot write {}: {}", path, std::strerror(errno));
}

void add_turn_options(CLI::App& command, int& rounds, double& seconds) {
  command.add_option("--rounds", rounds, "Turns of every call; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command.add_option("--seconds", seconds, "Length of a turn, about")
      ->check(CLI::Range(1e-6, 60.0))
      ->capture_default_str();
}

void add_json_option(CLI::App& command, std::string& path) {
  command.add_option("--json", path, "Write all figures to this file, with what they depend on")
      ->check([](const std::string& file) {
        const std::filesystem::path folder = std::filesystem::path(file).parent_path();
        if (folder.empty() || std::filesystem::is_directory(folder)) return std::string();
        return fmt::format("there is no folder {}", folder.string());
      });
}

}  // namespace supra
