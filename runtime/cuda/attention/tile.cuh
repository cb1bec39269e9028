#pragma once
// Matrices of bf16 in shared memory, laid out for ldmatrix. A row is made of granules of 16 bytes;
// granule g of row r lies at place g ^ (r % 8), so that eight rows of one granule column, which is
// what ldmatrix and the fragments' stores touch at once, fall on all 32 banks.

#include "runtime/cuda/ptx.h"
#include "runtime/cuda/vector.cuh"

namespace supra::cuda {

inline constexpr int granule = pack_size<bfloat16>;

/// The lower and the upper half of a register of a fragment.
__device__ __forceinline__ float low_bf16(uint32_t packed) {
  return __int_as_float(static_cast<int>(packed << 16));
}
__device__ __forceinline__ float high_bf16(uint32_t packed) {
  return __int_as_float(static_cast<int>(packed & 0xffff0000U));
}

/// Eight numbers of a granule.
struct alignas(16) Granule {
  uint32_t pair[granule / 2];

  __device__ __forceinline__ float operator[](int i) const {
    return i % 2 ? high_bf16(pair[i / 2]) : low_bf16(pair[i / 2]);
  }
};

/// A matrix with `columns` columns. The memory is 1024-byte aligned and no smaller than 8 rows.
template <int columns>
struct Tile {
  static_assert(columns == 64 || columns == 128);
  static constexpr int row_granules = columns / granule;

  bfloat16* elements;

  __device__ __forceinline__ bfloat16* at(int row, int g) const {
    return elements + row * columns + ((g ^ (row % 8)) * granule);
  }
  __device__ __forceinline__ Granule& granule_at(int row, int g) const {
    return *reinterpret_cast<Granule*>(at(row, g));
  }
  /// The pair of columns 8 g + 2 i, 8 g + 2 i + 1.
  __device__ __forceinline__ uint32_t& pair_at(int row, int g, int i) const {
    return reinterpret_cast<uint32_t*>(at(row, g))[i];
  }
};

/// A lane's part in the ldmatrix of 16 x 16 blocks of a tile: it points at a row of one of the four
/// 8 x 8 matrices. Rows and granules of a block's corner are compile-time constants where loops are
/// unrolled, so that a block costs one exclusive or.
template <int columns>
class BlockReader {
 public:
  /// `row` and `g` (below 8) in the block at the tile's corner. row % 8 is lane % 8.
  __device__ __forceinline__ BlockReader(const Tile<columns>& tile, int row, int g)
      : address_(shared_address(tile.at(row, g))) {}

  /// Granules of corners are multiples of the range of `g`.
  __device__ __forceinline__ void load(uint32_t (&r)[4], int row, int g) const {
    ldmatrix_x4(r, corner(row, g));
  }
  __device__ __forceinline__ void load_transposed(uint32_t (&r)[4], int row, int g) const {
    ldmatrix_x4_trans(r, corner(row, g));
  }

 private:
  __device__ __forceinline__ uint32_t corner(int row, int g) const {
    return (address_ ^ static_cast<uint32_t>(g * 16)) + static_cast<uint32_t>(row * columns * 2);
  }
  uint32_t address_;
};

/// The four matrices of a block in the order (top, left), (bottom, left), (top, right), (bottom,
/// right). Plain: operand a of the block. Transposed: operands b of its two columns of eight, when
/// rows are summed over.
template <int columns>
__device__ __forceinline__ BlockReader<columns> down_first(const Tile<columns>& tile, int lane) {
  return {tile, lane % 16, lane / 16};
}
/// In the order (top, left), (top, right), (bottom, left), (bottom, right). Plain: operands b of
/// its two rows of eight, when columns are summed over. Transposed: operand a of its transpose.
template <int columns>
__device__ __forceinline__ BlockReader<columns> across_first(const Tile<columns>& tile, int lane) {
  return {tile, lane % 8 + lane / 16 * 8, lane / 8 % 2};
}

/// Begins the copy of `rows` rows, `stride` elements apart in global memory; the tile's rows from
/// there to `tile_rows` become zero. Done by `threads` threads.
template <int tile_rows, int threads, int columns>
__device__ __forceinline__ void load_rows(const Tile<columns>& tile, const bfloat16* from,
                                          int64_t stride, int rows, int thread) {
  constexpr int row_granules = Tile<columns>::row_granules;
  constexpr int rows_at_once = threads / row_granules;
  static_assert(threads % row_granules == 0 && tile_rows % rows_at_once == 0);
  const int first = thread / row_granules, g = thread % row_granules;
  const bfloat16* source = from + first * stride + g * granule;
#pragma unroll
  for (int i = 0; i < tile_rows / rows_at_once; ++i) {
    const int row = i * rows_at_once + first;
    cp_async_16(shared_address(tile.at(row, g)), source, row < rows ? 16 : 0);
    source += rows_at_once * stride;
  }
}

}  // namespace supra::cuda
