#include "launch/bench/report.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>
#include <unistd.h>

#include <fmt/chrono.h>

#include "launch/report/run_log.h"
#include "parallel/hosts.h"
#include "runtime/cpu/gemm.h"

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

/// Cores that programs keep busy while this one sleeps.
double measure_busy_cores() {
  using Clock = std::chrono::steady_clock;
  const auto began = Clock::now();
  const double before = busy_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  const std::chrono::duration<double> elapsed = Clock::now() - began;
  return (busy_seconds() - before) / elapsed.count();
}

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

}  // namespace

BenchReport::BenchReport(const std::string& bench) {
  json_["format"] = "supra-bench 1";
  json_["bench"] = bench;
  json_["date"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  json_["program"] = describe_program();
  json_["machine"] = describe_machine();
  busy_cores_ = measure_busy_cores();
  json_["machine"]["busy_cores"] = busy_cores_;
}

void BenchReport::introduce(const Device& device, int ranks) {
  json_["machine"]["device"] = device.description();
  json_["machine"]["ranks"] = ranks;
  fmt::print("{} rank{} of {}; {}; commit {}\n", ranks, ranks == 1 ? "" : "s", device.description(),
             json_["machine"]["cpu"].get<std::string>(), run_commit());
  constexpr double noticeable = 0.25;
  if (busy_cores_ > noticeable) {
    fmt::print(stderr,
               "supra: other programs keep {:.1f} cores busy: what is measured beside them is too "
               "slow\n",
               busy_cores_);
  }
}

void BenchReport::save(const std::string& path) const {
  if (path.empty()) return;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << json_.dump(1) << '\n';
  file.close();
  if (!file) fail_input("cannot write {}: {}", path, std::strerror(errno));
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
