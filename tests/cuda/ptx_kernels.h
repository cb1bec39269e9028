#pragma once
// One instruction of runtime/cuda/ptx.h each, on one warp.

#include <cstdint>
#include <vector>

namespace supra::test {

/// Bits of the four registers of every lane, lane by lane, that ldmatrix loads from four 8x8
/// matrices of 16-bit elements, row by row.
std::vector<uint32_t> load_matrices(const std::vector<uint16_t>& matrices, bool transposed);

/// Registers d[0..3] of every lane after one mma of fragments given by lane: a[0..3], b[0..1],
/// d[0..3].
std::vector<float> multiply(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b,
                            const std::vector<float>& d);

/// 16-byte copies to shared memory, lane i's with valid[i] bytes; the bytes as they arrive.
std::vector<uint8_t> copy_async(const std::vector<uint8_t>& from,
                                const std::vector<uint32_t>& valid);

}  // namespace supra::test
