#include "runtime/cpu/gemm.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

#include <fmt/ranges.h>
#include <omp.h>

#include "runtime/cpu/gemm_kernels.h"
#include "runtime/error.h"

namespace supra::cpu {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
constexpr int64_t round_up(int64_t a, int64_t unit) {
  return ceil_div(a, unit) * unit;
}

/// Splits `size` into equal blocks of at most `largest`, a multiple of `unit`.
constexpr int64_t even_block(int64_t size, int64_t largest, int64_t unit) {
  const int64_t count = std::max<int64_t>(1, ceil_div(size, largest));
  return std::max(unit, round_up(ceil_div(size, count), unit));
}

const void* advance(const void* p, DType type, int64_t elements) {
  if (!p) return nullptr;
  return static_cast<const char*>(p) + elements * static_cast<int64_t>(size_of(type));
}
void* advance(void* p, DType type, int64_t elements) {
  return const_cast<void*>(advance(static_cast<const void*>(p), type, elements));
}

/// The last store of a product, with columns counted from `j0`.
GemmStore final_store(const Gemm& g, int64_t j0) {
  return {.input = g.input,
          .bias = advance(g.bias, g.input, j0),
          .output = g.output,
          .c = advance(g.c, g.output, j0),
          .c_stride = g.c_stride,
          .add = g.add,
          .relu = g.relu,
          .residual = advance(g.residual, g.output, j0),
          .residual_stride = g.residual_stride};
}

/// A few rows, as in generation token by token: B is read once, from where it is.
void direct_product(const GemmKernels& kernels, const Gemm& g, int threads) {
  const GemmStore store = final_store(g, 0);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t j = 0; j < g.n; j += kernels.direct_columns) kernels.direct(g, store, j);
}

/// Blocks of B are packed by all threads together and shared; each thread then packs blocks of A
/// for itself and multiplies. k is never split between threads.
void packed_product(const GemmKernels& kernels, const Gemm& g, int threads, GemmScratch& scratch) {
  const int64_t tile_m = kernels.tile_rows, tile_n = kernels.tile_columns;
  const int64_t block_k = even_block(g.k, kernels.block_k, 32);
  const int64_t block_n = even_block(g.n, kernels.block_n, tile_n);
  const int64_t k_blocks = std::max<int64_t>(1, ceil_div(g.k, block_k));

  // Enough pieces of work for the threads to end together: smaller blocks of rows, then parts of
  // the columns.
  const int64_t pieces = threads == 1 ? 1 : 4 * threads;
  int64_t block_m = kernels.block_m;
  while (block_m > 32 && ceil_div(g.m, block_m) < pieces) block_m /= 2;
  const int64_t m_blocks = ceil_div(g.m, block_m);

  const int64_t words = block_k / kernels.k_per_word;
  const int64_t slot = words * block_m;
  uint32_t* const b_panels = scratch.b.get<uint32_t>(words * block_n);
  uint32_t* const a_slots = scratch.a.get<uint32_t>(slot * threads);

  // Sums over a first part of k wait in C itself where it can hold them.
  const bool in_place = g.output == DType::fp32 && g.residual != g.c;
  float* const partial =
      k_blocks > 1 && !in_place ? scratch.partial.get<float>(g.m * block_n) : nullptr;
  const auto store_of = [&](int64_t j0, bool first, bool last) {
    GemmStore store = final_store(g, j0);
    float* const sums = in_place ? static_cast<float*>(store.c) : partial;
    const int64_t sums_stride = in_place ? g.c_stride : block_n;
    store.add = g.add && (in_place ? first : last);
    if (!first) {
      store.partial = sums;
      store.partial_stride = sums_stride;
    }
    if (!last) {
      store.output = DType::fp32;
      store.c = sums;
      store.c_stride = sums_stride;
      store.bias = store.residual = nullptr;
      store.relu = false;
    }
    return store;
  };

#pragma omp parallel num_threads(threads)
  for (int64_t j0 = 0; j0 < g.n; j0 += block_n) {
    uint32_t* const a_panels = a_slots + slot * omp_get_thread_num();
    const int64_t n = std::min(block_n, g.n - j0);
    const int64_t part_n = even_block(n, ceil_div(n * m_blocks, pieces), tile_n);
    const int64_t n_parts = ceil_div(n, part_n);
    for (int64_t block = 0; block < k_blocks; ++block) {
      const int64_t k0 = block * block_k;
      const int64_t k = std::min(block_k, g.k - k0);
      const int64_t depth = ceil_div(k, kernels.k_per_word);
      const GemmStore store = store_of(j0, block == 0, block + 1 == k_blocks);
#pragma omp for schedule(dynamic)
      for (int64_t j = 0; j < n; j += tile_n) {
        const int64_t from = (j0 + j) * g.b_col_stride + k0 * g.b_row_stride;
        kernels.pack_b({.origin = advance(g.b, g.input, from),
                        .stride = g.b_col_stride,
                        .k_stride = g.b_row_stride,
                        .count = std::min(tile_n, n - j),
                        .k = k},
                       b_panels + j * depth);
      }
#pragma omp for schedule(dynamic)
      for (int64_t piece = 0; piece < m_blocks * n_parts; ++piece) {
        const int64_t i0 = piece / n_parts * block_m;
        const int64_t part = piece % n_parts * part_n;
        const int64_t m = std::min(block_m, g.m - i0);
        const int64_t from = i0 * g.a_row_stride + k0 * g.a_col_stride;
        kernels.pack_a({.origin = advance(g.a, g.input, from),
                        .stride = g.a_row_stride,
                        .k_stride = g.a_col_stride,
                        .count = m,
                        .k = k},
                       a_panels);
        for (int64_t j = part; j < std::min(part + part_n, n); j += tile_n) {
          for (int64_t i = 0; i < m; i += tile_m) {
            kernels.tile(depth, a_panels + i * depth, b_panels + j * depth, store, i0 + i, j,
                         static_cast<int>(std::min(tile_m, m - i)),
                         static_cast<int>(std::min(tile_n, n - j)));
          }
        }
      }
    }
  }
}

void check(const Gemm& g) {
  const auto is_real = [](DType type) { return type == DType::fp32 || type == DType::bf16; };
  SUPRA_CHECK(is_real(g.input) && is_real(g.output), "gemm of {} to {}", name_of(g.input),
              name_of(g.output));
  SUPRA_CHECK(g.m >= 0 && g.n >= 0 && g.k >= 0, "gemm of m {}, n {}, k {}", g.m, g.n, g.k);
  SUPRA_CHECK(
      (g.a_row_stride == 1 || g.a_col_stride == 1) && (g.b_row_stride == 1 || g.b_col_stride == 1),
      "gemm of strides a ({}, {}), b ({}, {}): one of each must be 1", g.a_row_stride,
      g.a_col_stride, g.b_row_stride, g.b_col_stride);
}

const GemmIsa& chosen_isa() {
  static const GemmIsa& chosen = []() -> const GemmIsa& {
    const std::span<const GemmIsa> isas = gemm_isas();
    const char* const wanted = std::getenv("SUPRA_CPU_ISA");
    if (!wanted) return isas.front();
    const auto found = std::find_if(isas.begin(), isas.end(),
                                    [&](const GemmIsa& isa) { return isa.name == wanted; });
    if (found != isas.end()) return *found;
    std::vector<std::string_view> names;
    for (const GemmIsa& isa : isas) names.push_back(isa.name);
    fail_input("SUPRA_CPU_ISA is \"{}\"; this machine has: {}", wanted, fmt::join(names, ", "));
  }();
  return chosen;
}

}  // namespace

void gemm_with(const GemmIsa& isa, const Gemm& g, int threads, GemmScratch& scratch) {
  check(g);
  if (g.m == 0 || g.n == 0) return;
  constexpr int64_t few_rows = 4;            // beyond, packing B pays
  constexpr double worth_threads = 1 << 16;  // multiplications: microseconds, as is waking a team
  const GemmKernels& kernels = g.input == DType::fp32 ? isa.fp32 : isa.bf16;
  const bool large = static_cast<double>(g.m) * g.n * g.k >= worth_threads;
  const int team = large ? std::max(threads, 1) : 1;
  if (g.m <= few_rows && g.a_col_stride == 1 && g.b_row_stride == 1) {
    direct_product(kernels, g, team);
  } else {
    packed_product(kernels, g, team, scratch);
  }
}

void gemm(const Gemm& g, int threads, GemmScratch& scratch) {
  gemm_with(chosen_isa(), g, threads, scratch);
}

std::string_view gemm_isa() {
  return chosen_isa().name;
}

}  // namespace supra::cpu
