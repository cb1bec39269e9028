// Memory, limits, counters and reports of the emulator.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "tests/cuda/device_array.h"
#include "tests/emulated/emulator_fixture.h"
#include "tests/emulated/emulator_kernels.h"

using namespace supra;
using namespace supra::test;
using cuda::check_cuda;
using cuda::Stream;

namespace {

/// An environment variable for the time of a test.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Environment() { unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
};

struct Ended {
  int exit_code;
  std::string output;
};

/// This program again with one test case that is left out otherwise.
Ended run_left_out(const std::string& test_case) {
  const std::string command =
      fmt::format("/proc/{}/exe --no-skip -tc=\"{}\" 2>&1", getpid(), test_case);
  FILE* const pipe = popen(command.c_str(), "r");
  REQUIRE(pipe);
  Ended ended;
  char buffer[256];
  while (fgets(buffer, sizeof buffer, pipe)) ended.output += buffer;
  const int status = pclose(pipe);
  ended.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ended;
}

size_t free_bytes() {
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

/// Statistics of the one kernel whose name contains this.
emu::KernelStatistics statistics(const std::string& kernel) {
  emu::KernelStatistics found;
  for (const auto& [name, statistics] : emu::traffic()) {
    if (name.find(kernel) != std::string::npos) found = statistics;
  }
  return found;
}

}  // namespace

TEST_CASE("emulator: memory is NaN when allocated, also where freed memory is used again") {
  emu::reset();
  const Stream stream;
  const DeviceArray<float> y(8);
  std::set<float*> addresses;
  // More than the quarantine of freed memory holds back.
  constexpr int rounds = 200;
  for (int round = 0; round < rounds; ++round) {
    const DeviceArray<float> x(size_t{1} << 20);
    addresses.insert(x.data());
    increment(x.data() + 5000, y.data(), 8, stream.get());
    for (const float value : y.download(stream)) CHECK(std::isnan(value));
    check_cuda(cudaMemsetAsync(x.data(), 0, 10000 * sizeof(float), stream.get()), "memset");
    increment(x.data() + 5000, y.data(), 8, stream.get());
    CHECK(y.download(stream) == std::vector<float>(8, 1.0F));
  }
  CHECK(addresses.size() < rounds);
}

TEST_CASE("emulator: memory ends where SUPRA_EMULATOR_MEMORY says, and its use is counted") {
  emu::reset();
  const Environment limit("SUPRA_EMULATOR_MEMORY", "3");
  constexpr size_t mebibyte = size_t{1} << 20;
  CHECK(free_bytes() == 3 * mebibyte);
  {
    const DeviceArray<char> two(2 * mebibyte);
    CHECK(free_bytes() == mebibyte);
    void* more = nullptr;
    CHECK(cudaMalloc(&more, mebibyte + 1) == cudaErrorMemoryAllocation);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    CHECK(cudaGetLastError() == cudaSuccess);
    const DeviceArray<char> one(mebibyte);
    CHECK(free_bytes() == 0);
  }
  CHECK(free_bytes() == 3 * mebibyte);
}

TEST_CASE("emulator: devices and driver are what the environment says") {
  emu::reset();
  int value = 0;
  CHECK(cudaGetDeviceCount(&value) == cudaSuccess);
  CHECK(value == 8);
  CHECK(cudaSetDevice(8) == cudaErrorInvalidDevice);
  CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
  CHECK(cudaSetDevice(0) == cudaSuccess);
  {
    const Environment driver("SUPRA_EMULATOR_DRIVER", "12040");
    CHECK(cudaDriverGetVersion(&value) == cudaSuccess);
    CHECK(value == 12040);
  }
  const Environment none("SUPRA_EMULATOR_DEVICES", "0");
  CHECK(cudaDriverGetVersion(&value) == cudaSuccess);
  CHECK(value == 0);
  CHECK(cudaGetDeviceCount(&value) == cudaErrorNoDevice);
  emu::reset();
}

TEST_CASE("emulator: launches beyond the device's limits are refused") {
  emu::reset();
  const Stream stream;
  const auto error = [&](dim3 grid, dim3 block, size_t shared) {
    return error_of([&] { launch_empty(grid, block, shared, stream.get()); });
  };
  CHECK(error(1, 1024, 227 * 1024) == "");
  says(error(1, 1025, 0), "1025 threads");
  says(error(1, dim3(1, 1, 65), 0), "of which z is 64");
  says(error(1, 0, 0), "0 threads");
  says(error(dim3(1, 65536), 1, 0), "a grid of (1, 65536, 1)");
  says(error(0, 1, 0), "a grid of (0, 1, 1)");
  says(error(1, 1, 227 * 1024 + 1), "at most 232448");
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  const DeviceArray<float> y(32);
  CHECK(error_of([&] { launch_bounded(64, stream.get()); }) == "");
  says(error_of([&] { launch_bounded(65, stream.get()); }), "__launch_bounds__ says 64");
  CHECK(error_of([&] { launch_with_static_shared(y.data(), 32 * 1024, stream.get()); }) == "");
  says(error_of([&] { launch_with_static_shared(y.data(), 32 * 1024 + 16, stream.get()); }),
       "without cudaFuncSetAttribute");
  // None of them is the end: the next launch is as good as ever.
  CHECK(error(1, 1, 0) == "");
}

TEST_CASE("emulator: shared memory that nobody wrote is NaN") {
  for_each_seed([] {
    const Stream stream;
    const DeviceArray<float> y(2);
    read_unwritten_shared(y.data(), stream.get());
    for (const float value : y.download(stream)) CHECK(std::isnan(value));
  });
}

TEST_CASE("emulator: bytes are counted by kernel, each touched and each different one") {
  emu::reset();
  constexpr int n = 64;
  const Stream stream;
  const DeviceArray<float> x(std::vector<float>(n, 1.0F), stream), y(n);
  emu::reset_traffic();
  for (int i = 0; i < 2; ++i) add_first(x.data(), y.data(), n, stream.get());
  CHECK(y.download(stream) == std::vector<float>(n, 2.0F));
  const emu::KernelStatistics counted = statistics("add_first_kernel");
  CHECK(counted.launches == 2);
  CHECK(counted.distinct_read == 2 * n * sizeof(float));
  CHECK(counted.distinct_written == 2 * n * sizeof(float));
  CHECK(counted.written == 2 * n * sizeof(float));
  // Every thread reads its 16 bytes, and x[0] once or, in the loop, four times.
  CHECK(counted.read >= 2 * (n * sizeof(float) + n / 4 * sizeof(float)));
}

TEST_CASE("emulator: bank conflicts of ldmatrix are counted") {
  emu::reset();
  const Stream stream;
  const auto conflicts = [&](int stride) {
    emu::reset_traffic();
    load_matrices_apart(stride, stream.get());
    stream.synchronize();
    CHECK(statistics("load_kernel").matrix_loads == 1);
    return statistics("load_kernel").bank_conflicts;
  };
  CHECK(conflicts(16) == 0);
  CHECK(conflicts(80) == 0);       // 5 groups on: all eight are met
  CHECK(conflicts(128) == 4 * 7);  // all rows in one group
  CHECK(conflicts(64) == 4 * 3);   // in two groups
}

TEST_CASE("emulator: the leak report names what was not given back") {
  emu::reset();
  CHECK(emu::leak_report() == "");
  {
    const Stream stream;
    const DeviceArray<float> x(3);
    const PinnedArray<float> y(5);
    cuda::Event event;
    const std::string report = emu::leak_report();
    says(report, "1 device buffers (12 bytes), 1 pinned buffers (20 bytes)");
    says(report, "stream ");
    says(report, "1 events");
  }
  CHECK(emu::leak_report() == "");
  cudaStreamSynchronize(nullptr);
  says(emu::leak_report(), "an error that no call returned: the null stream");
  emu::reset();
}

TEST_CASE("emulator left out: leak" * doctest::skip()) {
  void* address = nullptr;
  CHECK(cudaMalloc(&address, 10) == cudaSuccess);
}

TEST_CASE("emulator: a leak makes the exit code other than 0") {
  const Ended ended = run_left_out("emulator left out: leak");
  CHECK(ended.exit_code == emu::leak_exit_code);
  says(ended.output, "memory not freed: 1 device buffers (10 bytes)");
}

TEST_CASE("emulator left out: host touches device memory" * doctest::skip()) {
  const Stream stream;
  const DeviceArray<float> x(std::vector<float>(4, 1.0F), stream);
  stream.synchronize();
  CHECK(x.data()[1] == 1);
}

TEST_CASE("emulator: host code that touches device memory ends with a message") {
  const Ended ended = run_left_out("emulator left out: host touches device memory");
  CHECK(ended.exit_code != 0);
  says(ended.output, "host code touched device memory, byte +4 of a 16-byte device buffer");
}
