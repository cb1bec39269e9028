#pragma once
// The emulator's twin of runtime/cuda/ptx.h.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace emu {
/// The shared-memory address of a pointer; fails for memory of another kind.
uint32_t shared_address(const void* pointer);
void copy_async(uint32_t to, const void* from, unsigned valid, Loc where);
void commit_copies();
void wait_for_copies(unsigned pending);
void load_matrices(uint32_t (&registers)[4], uint32_t row, bool transposed, Loc where);
void multiply_matrices(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Loc where);
}  // namespace emu

namespace supra::cuda {

__forceinline__ uint32_t shared_address(const void* p) {
  return emu::shared_address(p);
}
__forceinline__ void cp_async_16(uint32_t to, const void* from, uint32_t valid = 16, EMU_LOC) {
  emu::copy_async(to, from, valid, loc);
}
__forceinline__ void cp_async_commit() {
  emu::commit_copies();
}
template <int pending>
__forceinline__ void cp_async_wait() {
  emu::wait_for_copies(pending);
}
__forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, EMU_LOC) {
  emu::load_matrices(r, row, false, loc);
}
__forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row, EMU_LOC) {
  emu::load_matrices(r, row, true, loc);
}
__forceinline__ int opaque(int x) {
  return x;
}
__forceinline__ uint32_t pack_bf16(float low, float high) {
  return __nv_bfloat16(low).x | static_cast<uint32_t>(__nv_bfloat16(high).x) << 16;
}
__forceinline__ float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126F ? 0.0F : y;
}
__forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                 EMU_LOC) {
  emu::multiply_matrices(d, a, b0, b1, loc);
}

}  // namespace supra::cuda
