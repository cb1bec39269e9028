#pragma once
// Kernels for the tests of the emulator itself.

#include <cuda_runtime.h>

namespace supra::test {

/// y = x + 1
void increment(const float* x, float* y, int n, cudaStream_t stream);
/// Touches nothing, with any shape.
void launch_empty(dim3 grid, dim3 block, size_t shared, cudaStream_t stream);
/// The same with __launch_bounds__(64).
void launch_bounded(int threads, cudaStream_t stream);
/// Sets 32 elements of y, by way of 16 KiB of static shared memory.
void launch_with_static_shared(float* y, size_t dynamic_shared, cudaStream_t stream);
/// One ldmatrix of four matrices whose rows are `stride` bytes apart, the matrices 8 rows.
void load_matrices_apart(int stride, cudaStream_t stream);
/// y[i] = x[i] + x[0], 16-byte accesses of n / 4 threads.
void add_first(const float* x, float* y, int n, cudaStream_t stream);
/// y = what lies in shared memory that nobody wrote.
void read_unwritten_shared(float* y, cudaStream_t stream);

}  // namespace supra::test
