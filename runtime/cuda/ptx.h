#pragma once
// Every PTX instruction the kernels use, each a function; asm stands nowhere else.
// tests/emulator/include has a twin of this header that does the same on the host, fragment layouts
// included. Reference: the PTX ISA's section of the instruction's name.

#include <cstdint>

#include <cuda_runtime.h>

namespace supra::cuda {

/// The 32-bit shared-memory address that the instructions below take.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// Begins a copy of 16 bytes from global to shared memory, past L1; both 16-byte aligned. The bytes
/// from `valid` on become zero and are not read.
__device__ __forceinline__ void cp_async_16(uint32_t to, const void* from, uint32_t valid = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid)
               : "memory");
}
/// Ends a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most `pending` of this thread's groups are under way. A barrier must follow
/// before other threads read.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/// Four 8x8 matrices of bf16. Lane 8 m + i gives the address of row i of matrix m, 16-byte aligned.
/// Of each matrix, lane l gets elements (l / 4, 2 (l % 4)) in the lower half and the one to its
/// right in the upper.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
/// The same with each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

/// `x`, of which the compiler knows nothing. What depends on it is computed after this point: a
/// loop that is short of registers keeps what is quickly computed out of them this way.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

/// Two numbers rounded to bf16, `low` in the lower half: half a register of a fragment each.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// 2^x with a relative error of 2^-22; results that would be subnormal are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// d += a b; a 16x16, b 16x8 bf16, d 16x8 fp32. With g = lane / 4 and t = 2 (lane % 4):
/// a = rows g, g+8 of columns t, t+1, then of columns t+8, t+9; b = rows t, t+1, then t+8, t+9, of
/// column g; d = row g, then g+8, of columns t, t+1.
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace supra::cuda
