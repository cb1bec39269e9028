#pragma once
// The matrix product of the CPU device: one packing structure for fp32 and bf16, for every layout
// that a linear layer and its backward need, and for the instruction sets of the machines it may
// meet.

#include <cstdint>
#include <string_view>

#include "runtime/cpu/scratch.h"
#include "runtime/dtype.h"

namespace supra::cpu {

/// C[m,n] = A[m,k] B[k,n] (+ C if add) (+ bias[n]) (relu) (+ residual[m,n]), in that order. Sums
/// are fp32 and rounded once, when C is stored. m, n, k >= 0; k = 0 is a product of zeros.
struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  DType input = DType::fp32;  ///< of a, b and bias: fp32 or bf16
  const void* a = nullptr;  ///< element (i, p) at a[i * a_row_stride + p * a_col_stride]; one is 1
  int64_t a_row_stride = 0, a_col_stride = 0;
  const void* b = nullptr;  ///< element (p, j) at b[p * b_row_stride + j * b_col_stride]; one is 1
  int64_t b_row_stride = 0, b_col_stride = 0;
  DType output = DType::fp32;  ///< of c and residual: fp32 or bf16
  void* c = nullptr;           ///< element (i, j) at c[i * c_stride + j]
  int64_t c_stride = 0;
  bool add = false;
  const void* bias = nullptr;  ///< none when null
  bool relu = false;
  const void* residual = nullptr;  ///< none when null; may be c itself
  int64_t residual_stride = 0;
};

/// Packed panels of A (a slot for each thread), of B, and the partial sums of a long k.
struct GemmScratch {
  Scratch a, b, partial;
  size_t bytes() const { return a.bytes() + b.bytes() + partial.bytes(); }
};

/// The same bits for any number of threads; k is never split between them. Calls may run at the
/// same time, each with scratch memory of its own. "avx512_bf16" takes subnormal inputs, sums and
/// bf16 results of packed products as zero, as its instructions do; the other instruction sets keep
/// them.
void gemm(const Gemm& g, int threads, GemmScratch& scratch);

/// Instruction set chosen at run time: "avx512_bf16", "avx512", "avx2" or "portable". The
/// environment variable SUPRA_CPU_ISA, set to one of these, lowers it.
std::string_view gemm_isa();

}  // namespace supra::cpu
