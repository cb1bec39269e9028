#pragma once
// What the instruction sets provide to the matrix product, and how packed panels look. Internal to
// gemm, its tests and its benchmark.
//
// A panel holds a strip of A (as many rows as a tile) or of B (as many columns): for each step
// along k the strip's elements side by side, as 32-bit words. A word is an fp32, or two bf16
// consecutive along k. Short strips are padded with zeros.

#include <cstdint>
#include <span>
#include <string_view>

#include "runtime/cpu/gemm/gemm.h"

namespace supra::cpu {

/// What happens to the sums of a product when they are stored.
struct GemmStore {
  const float* partial = nullptr;  ///< sums over the earlier part of k
  int64_t partial_stride = 0;
  DType input = DType::fp32;
  const void* bias = nullptr;
  DType output = DType::fp32;
  void* c = nullptr;
  int64_t c_stride = 0;
  bool add = false, relu = false;
  const void* residual = nullptr;
  int64_t residual_stride = 0;
};

/// Where packing reads: `count` strips of depth `k`, element (r, p) at origin[r * stride + p *
/// k_stride].
struct GemmStrips {
  const void* origin;
  int64_t stride, k_stride, count, k;
};

/// Rows of A: a panel, or, where elements follow each other along k as words do, A itself.
struct GemmRows {
  const void* first;
  int64_t stride = 0;  ///< bytes between rows of A itself
};

/// The kernels of one instruction set for one input dtype.
struct GemmKernels {
  int tile_rows, tile_columns;        // sums that stay in registers
  int k_per_word;                     // 2 for bf16 pairs, else 1
  int64_t block_m, block_n, block_k;  // largest packed blocks: A in the L2 cache, B in the L3
  void (*pack_a)(const GemmStrips& rows, uint32_t* panels);
  void (*pack_b)(const GemmStrips& columns, uint32_t* panels);
  /// One tile of C: `rows` x `columns` of it are stored, at (row, column).
  using Tile = void (*)(int64_t words, const GemmRows& a, const uint32_t* b, const GemmStore& store,
                        int64_t row, int64_t column, int rows, int columns);
  Tile tile;
  Tile tile_of_plain_rows;  ///< null where elements have to be widened
  /// Without packing, for A and B contiguous along k: all rows of `direct_columns` columns from
  /// `column`.
  int direct_columns;
  void (*direct)(const Gemm& g, const GemmStore& store, int64_t column);
};

struct GemmIsa {
  std::string_view name;
  GemmKernels fp32, bf16;
};

/// What this machine can run, best first; the last is "portable".
std::span<const GemmIsa> gemm_isas();

/// `gemm` with the instruction set given.
void gemm_with(const GemmIsa& isa, const Gemm& g, int threads, GemmScratch& scratch);

}  // namespace supra::cpu
