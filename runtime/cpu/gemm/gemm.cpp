#include "runtime/cpu/gemm/gemm.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

#include <fmt/ranges.h>
#include <omp.h>

#include "runtime/cpu/gemm/gemm_kernels.h"
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

/// How the rows of a product are handed out: in blocks, and towards the end in smaller ones, so
/// that the threads end together.
class RowBlocks {
 public:
  RowBlocks(int64_t rows, int64_t block, int threads) : rows_(rows), block_(block) {
    if (threads == 1) {
      small_ = block_;
    } else {
      small_ = std::max<int64_t>(16, block_ / 4);
      whole_ = std::max<int64_t>(0, rows_ - threads * block_) / block_;
    }
  }
  int64_t count() const { return whole_ + ceil_div(rows_ - whole_ * block_, small_); }
  int64_t begin(int64_t i) const {
    return i < whole_ ? i * block_ : std::min(rows_, whole_ * block_ + (i - whole_) * small_);
  }
  int64_t size(int64_t i) const { return begin(i + 1) - begin(i); }

 private:
  int64_t rows_, block_;
  int64_t whole_ = 0, small_;
};

/// Blocks of B are packed by all threads together and shared; each thread packs blocks of A for
/// itself and multiplies. While one block of B is multiplied, the next is packed: one wait a block.
/// k is never split between threads.
void packed_product(const GemmKernels& kernels, const Gemm& g, int threads, GemmScratch& scratch) {
  const int64_t tile_m = kernels.tile_rows, tile_n = kernels.tile_columns;
  const int64_t block_k = even_block(g.k, kernels.block_k, 32);
  const int64_t block_n = even_block(g.n, kernels.block_n, tile_n);
  const int64_t k_blocks = std::max<int64_t>(1, ceil_div(g.k, block_k));
  const int64_t blocks = k_blocks * ceil_div(g.n, block_n);  // of B

  // Few rows give too few pieces of work to share: then the columns are parted too.
  const RowBlocks row_blocks(g.m, kernels.block_m, threads);
  const int64_t pieces = threads == 1 ? 1 : 4 * threads;

  // Rows whose words lie as the tile reads them need no packing.
  const bool plain_rows =
      kernels.tile_of_plain_rows && g.a_col_stride == 1 && g.k % kernels.k_per_word == 0;
  const auto tile = plain_rows ? kernels.tile_of_plain_rows : kernels.tile;

  const int64_t words = block_k / kernels.k_per_word;
  const int64_t a_slot = words * kernels.block_m;
  const int64_t b_slot = words * block_n;
  uint32_t* const a_slots = scratch.a.get<uint32_t>(plain_rows ? 0 : a_slot * threads);
  uint32_t* const b_slots = scratch.b.get<uint32_t>(b_slot * std::min<int64_t>(blocks, 2));

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

  struct Block {
    int64_t j0, n, k0, k, depth;
    uint32_t* panels;
  };
  const auto block_of = [&](int64_t i) {
    const int64_t j0 = i / k_blocks * block_n, k0 = i % k_blocks * block_k;
    const int64_t k = std::min(block_k, g.k - k0);
    return Block{.j0 = j0,
                 .n = std::min(block_n, g.n - j0),
                 .k0 = k0,
                 .k = k,
                 .depth = ceil_div(k, kernels.k_per_word),
                 .panels = b_slots + i % 2 * b_slot};
  };
  const auto pack_b = [&](const Block& b, int64_t j) {
    const int64_t from = (b.j0 + j) * g.b_col_stride + b.k0 * g.b_row_stride;
    kernels.pack_b({.origin = advance(g.b, g.input, from),
                    .stride = g.b_col_stride,
                    .k_stride = g.b_row_stride,
                    .count = std::min(tile_n, b.n - j),
                    .k = b.k},
                   b.panels + j * b.depth);
  };
  const auto multiply = [&](const Block& b, const GemmStore& store, int64_t i0, int64_t m,
                            int64_t first, int64_t last) {
    const int64_t from = i0 * g.a_row_stride + b.k0 * g.a_col_stride;
    const void* a = advance(g.a, g.input, from);
    int64_t a_stride = g.a_row_stride * static_cast<int64_t>(size_of(g.input));
    if (!plain_rows) {
      uint32_t* const panels = a_slots + a_slot * omp_get_thread_num();
      kernels.pack_a(
          {.origin = a, .stride = g.a_row_stride, .k_stride = g.a_col_stride, .count = m, .k = b.k},
          panels);
      a = panels;
      a_stride = b.depth * static_cast<int64_t>(sizeof(uint32_t));
    }
    for (int64_t j = first; j < last; j += tile_n) {
      for (int64_t i = 0; i < m; i += tile_m) {
        const GemmRows rows{static_cast<const char*>(a) + i * a_stride, a_stride};
        tile(b.depth, rows, b.panels + j * b.depth, store, i0 + i, j,
             static_cast<int>(std::min(tile_m, m - i)),
             static_cast<int>(std::min(tile_n, b.n - j)));
      }
    }
  };

#pragma omp parallel num_threads(threads)
  for (int64_t i = 0; i <= blocks; ++i) {
    const Block next = i < blocks ? block_of(i) : Block{};
    const Block block = i > 0 ? block_of(i - 1) : Block{};
    const int64_t packs = ceil_div(next.n, tile_n);
    const int64_t wanted = ceil_div(pieces, row_blocks.count());  // of the columns
    const int64_t part =
        even_block(block.n, std::max<int64_t>(1, ceil_div(block.n, wanted)), tile_n);
    const int64_t parts = ceil_div(block.n, part);
    const GemmStore store = store_of(block.j0, block.k0 == 0, block.k0 + block.k == g.k);
#pragma omp for schedule(dynamic)
    for (int64_t piece = 0; piece < packs + row_blocks.count() * parts; ++piece) {
      if (piece < packs) {
        pack_b(next, piece * tile_n);
      } else {
        const int64_t rows = (piece - packs) / parts, first = (piece - packs) % parts * part;
        multiply(block, store, row_blocks.begin(rows), row_blocks.size(rows), first,
                 std::min(first + part, block.n));
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
