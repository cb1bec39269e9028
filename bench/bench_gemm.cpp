// Speed of the CPU matrix product: y = x w^T, dx = dy w and dw += dy^T x for the layers of real
// models, packing included, in GFLOP/s (median of the repetitions). Rows with few tokens are
// generation.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <omp.h>

#include "runtime/cpu/gemm/gemm_kernels.h"

namespace {

using namespace supra;
using supra::cpu::Gemm;

struct Layer {
  int64_t tokens, in, out;
};

constexpr Layer layers[] = {
    {4096, 576, 576},   {4096, 576, 1536},   {4096, 1536, 576}, {4096, 576, 49152},
    {2048, 4096, 4096}, {2048, 4096, 11008}, {512, 192, 576},   {512, 576, 64},
    {1000, 577, 131},   {32, 576, 1536},     {4, 576, 49152},   {1, 576, 49152},
    {1, 4096, 11008},
};

template <class T>
std::vector<T> random_numbers(int64_t n, uint32_t seed) {
  std::vector<T> v(n);
  for (T& x : v) {
    seed = seed * 1664525 + 1013904223;
    x = T(static_cast<float>(seed >> 8) * 0x1p-24F - 0.5F);
  }
  return v;
}

/// Median time of one call, in seconds.
double median_time(const auto& call, double budget) {
  using Clock = std::chrono::steady_clock;
  call();  // scratch memory grows here
  std::vector<double> times;
  double total = 0;
  while (total < budget || (times.size() < 3 && total < 10 * budget)) {
    const auto start = Clock::now();
    call();
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    total += times.back();
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

template <class T>
void measure(const cpu::GemmIsa& isa, const Layer& layer, int threads, double seconds) {
  const auto [t, i, o] = layer;
  const auto x = random_numbers<T>(t * i, 1), w = random_numbers<T>(o * i, 2);
  auto y = random_numbers<T>(t * o, 3);
  std::vector<T> dx(t * i);
  std::vector<float> dw(o * i);
  const Gemm products[] = {{.m = t,
                            .n = o,
                            .k = i,
                            .input = dtype_of<T>,
                            .a = x.data(),
                            .a_row_stride = i,
                            .a_col_stride = 1,
                            .b = w.data(),
                            .b_row_stride = 1,
                            .b_col_stride = i,
                            .output = dtype_of<T>,
                            .c = y.data(),
                            .c_stride = o},
                           {.m = t,
                            .n = i,
                            .k = o,
                            .input = dtype_of<T>,
                            .a = y.data(),
                            .a_row_stride = o,
                            .a_col_stride = 1,
                            .b = w.data(),
                            .b_row_stride = i,
                            .b_col_stride = 1,
                            .output = dtype_of<T>,
                            .c = dx.data(),
                            .c_stride = i},
                           {.m = o,
                            .n = i,
                            .k = t,
                            .input = dtype_of<T>,
                            .a = y.data(),
                            .a_row_stride = 1,
                            .a_col_stride = o,
                            .b = x.data(),
                            .b_row_stride = i,
                            .b_col_stride = 1,
                            .output = DType::fp32,
                            .c = dw.data(),
                            .c_stride = i,
                            .add = true}};
  const double flops =
      2.0 * static_cast<double>(t) * static_cast<double>(i) * static_cast<double>(o);
  cpu::GemmScratch scratch;
  fmt::print("{:>5} {:>6} {:>6} {:>5} {:>8}", t, i, o, name_of(dtype_of<T>), threads);
  double forward = 0;
  for (const Gemm& g : products) {
    const double time = median_time([&] { gemm_with(isa, g, threads, scratch); }, seconds);
    if (&g == products) forward = time;
    fmt::print(" {:9.1f}", flops / time * 1e-9);
  }
  fmt::print(" {:9.1f}\n", static_cast<double>(w.size() * sizeof(T)) / forward * 1e-9);
}

}  // namespace

int main(int argc, char** argv) {
  int threads = omp_get_max_threads();
  double seconds = 0.3;
  std::string isa_name{cpu::gemm_isas().front().name};
  CLI::App app("Speed of the CPU matrix product, in GFLOP/s, and of reading w in GB/s");
  app.add_option("--threads", threads, "Threads of the second table, after one alone")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", seconds, "Time to spend on each figure")->capture_default_str();
  app.add_option("--isa", isa_name, "Instruction set")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  const auto isas = cpu::gemm_isas();
  const auto isa = std::find_if(isas.begin(), isas.end(),
                                [&](const auto& each) { return each.name == isa_name; });
  if (isa == isas.end()) {
    fmt::print(stderr, "this machine does not have the instruction set {}\n", isa_name);
    return 2;
  }
  fmt::print("{}\n{:>5} {:>6} {:>6} {:>5} {:>8} {:>9} {:>9} {:>9} {:>9}\n", isa->name, "tokens",
             "in", "out", "dtype", "threads", "forward", "dx", "dw", "w GB/s");
  for (const int team : {1, threads}) {
    for (const Layer& layer : layers) {
      measure<float>(*isa, layer, team, seconds);
      measure<bf16>(*isa, layer, team, seconds);
    }
    if (threads == 1) break;
  }
}
