// The gather of embedding rows, and its gradient without atomics: positions are sorted by token, in
// a stable order, and each run of equal tokens is summed in that order. The sorted list is cut into
// pieces of fixed length, so that a token that fills the whole batch is summed by many blocks; what
// a piece holds of a run begun before it becomes a partial sum, which a second kernel adds.

#include <bit>

#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/typed.h"

namespace supra::cuda {
namespace {

template <class T, int n>
__global__ void __launch_bounds__(256, 8)
    gather_rows_kernel(const T* weight, const int32_t* tokens, T* y, int64_t rows, int width) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const T* from = weight + int64_t{tokens[row]} * width;
  for (int i = threadIdx.x * n; i < width; i += blockDim.x * n) {
    pack_at<n>(y + row * width + i) = pack_at<n>(from + i);
  }
}

// The sort: radix, least digit first. A block takes `tile` successive positions, of which each warp
// takes a part, 32 at a time; what precedes a position in its part, in its tile and in the whole
// list is counted, never raced for.

// Four blocks a multiprocessor, for the registers of the ranks: lists are short beside the rows.

constexpr int digit_bits = 8, digits = 1 << digit_bits;
constexpr int sort_threads = digits;  // so that a thread can look after a digit
constexpr int sort_warps = sort_threads / warp_size;
constexpr int steps = 8;  // of 32 positions a warp: enough to make the counts of 256 digits pay
constexpr int tile = sort_threads * steps;

/// A list of tokens and the rows where they stand. `row` null: the rows are 0, 1, 2, ...
struct TokenList {
  int32_t *token, *row;
};

/// counts[warp][digit] of the warp's part of the tile. rank[s]: how many positions before this
/// lane's, in that part, have the same digit as its position of step s, digit[s].
struct TileRanks {
  int digit[steps], rank[steps];

  __device__ void count(const int32_t* token, int64_t begin, int64_t end, int shift,
                        int (&counts)[sort_warps][digits]) {
    const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
    for (int d = lane; d < digits; d += warp_size) counts[warp][d] = 0;
    __syncwarp();
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      const int64_t i = begin + s * warp_size + lane;
      digit[s] = i < end ? token[i] >> shift & (digits - 1) : -1;
      unsigned same = __ballot_sync(whole_warp, i < end);
#pragma unroll
      for (int bit = 0; bit < digit_bits; ++bit) {
        const bool set = digit[s] >> bit & 1;
        const unsigned with = __ballot_sync(whole_warp, set);
        same &= set ? with : ~with;
      }
      const int before = __popc(same & ((1U << lane) - 1));
      if (i < end) rank[s] = counts[warp][digit[s]] + before;
      __syncwarp();
      if (i < end && before == 0) counts[warp][digit[s]] = rank[s] + __popc(same);
      __syncwarp();
    }
  }
};

/// The part of tile blockIdx.x that falls to this warp, cut at `count`.
struct WarpPart {
  int64_t begin, end;
  __device__ explicit WarpPart(int64_t count) {
    begin = (int64_t{blockIdx.x} * sort_warps + threadIdx.x / warp_size) * (warp_size * steps);
    end = min(count, begin + warp_size * steps);
  }
};

/// totals[digit][tile] = how often the tile holds the digit.
__global__ void __launch_bounds__(sort_threads, 4)
    count_digits_kernel(const int32_t* token, int64_t count, int shift, int* totals) {
  __shared__ int counts[sort_warps][digits];
  const WarpPart part(count);
  TileRanks ranks;
  ranks.count(token, part.begin, part.end, shift, counts);
  __syncthreads();
  int sum = 0;
  for (int warp = 0; warp < sort_warps; ++warp) sum += counts[warp][threadIdx.x];
  totals[int64_t{threadIdx.x} * gridDim.x + blockIdx.x] = sum;
}

constexpr int scan_threads = 1024;

__device__ __forceinline__ int inclusive_warp_scan(int x) {
  const int lane = threadIdx.x % warp_size;
#pragma unroll
  for (int offset = 1; offset < warp_size; offset *= 2) {
    const int left = __shfl_up_sync(whole_warp, x, offset);
    if (lane >= offset) x += left;
  }
  return x;
}

/// x[i] = x[0] + ... + x[i - 1], by one block.
__global__ void __launch_bounds__(scan_threads, 1) exclusive_scan_kernel(int* x, int64_t count) {
  __shared__ int warp_sums[scan_threads / warp_size];
  const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
  int before = 0;
  for (int64_t begin = 0; begin < count; begin += scan_threads) {
    const int64_t i = begin + threadIdx.x;
    const int own = i < count ? x[i] : 0;
    const int in_warp = inclusive_warp_scan(own);
    if (lane == warp_size - 1) warp_sums[warp] = in_warp;
    __syncthreads();
    const int warps = inclusive_warp_scan(warp_sums[lane]);
    const int warps_before = __shfl_sync(whole_warp, warps, (warp + warp_size - 1) % warp_size);
    if (i < count) x[i] = before + (warp ? warps_before : 0) + in_warp - own;
    before += __shfl_sync(whole_warp, warps, warp_size - 1);
    __syncthreads();
  }
}

/// Moves the list to where `starts`, the scanned totals, say.
__global__ void __launch_bounds__(sort_threads, 4)
    scatter_kernel(TokenList from, TokenList to, int64_t count, int shift, const int* starts) {
  __shared__ int counts[sort_warps][digits];
  const WarpPart part(count);
  TileRanks ranks;
  ranks.count(from.token, part.begin, part.end, shift, counts);
  __syncthreads();
  int start = starts[int64_t{threadIdx.x} * gridDim.x + blockIdx.x];
  for (int warp = 0; warp < sort_warps; ++warp) {
    const int own = counts[warp][threadIdx.x];
    counts[warp][threadIdx.x] = start;
    start += own;
  }
  __syncthreads();
#pragma unroll
  for (int s = 0; s < steps; ++s) {
    const int64_t i = part.begin + s * warp_size + threadIdx.x % warp_size;
    if (i < part.end) {
      const int position = counts[threadIdx.x / warp_size][ranks.digit[s]] + ranks.rank[s];
      to.token[position] = from.token[i];
      to.row[position] = from.row ? from.row[i] : static_cast<int32_t>(i);
    }
  }
}

// The sums. A block takes one piece of the sorted list and a part of the columns.

constexpr int piece = 64;
constexpr int sum_threads = 128;
/// Loads under way in each thread: with 8 blocks a multiprocessor 64 KiB, and 64 registers a
/// thread.
constexpr int rows_at_once = 4;

/// dweight[token] += dy's rows of each run that begins in piece blockIdx.x; heads[piece] = the sum
/// of those that continue a run begun before.
template <class T, int n>
__global__ void __launch_bounds__(sum_threads, 8)
    sum_pieces_kernel(TokenList sorted, int64_t count, const T* dy, float* dweight, float* heads,
                      int width) {
  const int64_t begin = int64_t{blockIdx.x} * piece, end = min(count, begin + piece);
  const int column = (blockIdx.y * sum_threads + threadIdx.x) * n;
  if (column >= width) return;
  int token = sorted.token[begin];
  bool continues = begin > 0 && sorted.token[begin - 1] == token;
  float sum[n] = {};
  const auto flush = [&] {
    if (continues) {
      store<n>(heads + int64_t{blockIdx.x} * width + column, sum);
    } else {
      float total[n];
      float* const to = dweight + int64_t{token} * width + column;
      load<n>(to, total);
#pragma unroll
      for (int j = 0; j < n; ++j) total[j] += sum[j];
      store<n>(to, total);
    }
  };
  for (int64_t i = begin; i < end; i += rows_at_once) {
    Pack<T, n> row[rows_at_once];
#pragma unroll
    for (int r = 0; r < rows_at_once; ++r) {
      if (i + r < end) row[r] = pack_at<n>(dy + int64_t{sorted.row[i + r]} * width + column);
    }
#pragma unroll
    for (int r = 0; r < rows_at_once; ++r) {
      if (i + r < end) {
        const int next = sorted.token[i + r];
        if (next != token) {
          flush();
          token = next;
          continues = false;
#pragma unroll
          for (int j = 0; j < n; ++j) sum[j] = 0;
        }
#pragma unroll
        for (int j = 0; j < n; ++j) sum[j] += widen(row[r].at[j]);
      }
    }
  }
  flush();
}

/// Whether piece p begins within a run.
__device__ __forceinline__ bool continues_run(const int32_t* token, int64_t p) {
  return p > 0 && token[p * piece] == token[p * piece - 1];
}

/// Adds a run's heads, in order, onto what its first piece has put into dweight. The block of the
/// first head does it.
template <int n>
__global__ void __launch_bounds__(sum_threads, 8)
    add_heads_kernel(const int32_t* token, const float* heads, float* dweight, int64_t pieces,
                     int width) {
  int64_t p = blockIdx.x;
  const int column = (blockIdx.y * sum_threads + threadIdx.x) * n;
  const int run = token[p * piece];
  const auto continues = [&](int64_t q) {
    return continues_run(token, q) && token[q * piece] == run;
  };
  if (column >= width || !continues(p) || (continues(p - 1))) return;
  float* const to = dweight + int64_t{run} * width + column;
  float sum[n];
  load<n>(to, sum);
  for (; p < pieces && continues(p); ++p) {
    float head[n];
    load<n>(heads + p * width + column, head);
#pragma unroll
    for (int j = 0; j < n; ++j) sum[j] += head[j];
  }
  store<n>(to, sum);
}

}  // namespace

void CudaOps::embedding_forward(const Tensor& tokens, const Tensor& weight, const Tensor& y) {
  const int64_t rows = tokens.numel();
  const int width = row_length(weight.size(1));
  with_type(weight.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int n = pack_size<T>;
    const bool wide = is_aligned(weight, y) && width % n == 0;
    const dim3 block = rows_block(wide ? width / n : width);
    launch(wide ? gather_rows_kernel<T, n> : gather_rows_kernel<T, 1>,
           static_cast<unsigned>(ceil_div(rows, block.y)), block, 0, stream_, weight.data<T>(),
           tokens.data<int32_t>(), y.data<T>(), rows, width);
  });
}

void CudaOps::embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& dweight) {
  const int64_t count = tokens.numel();
  const int width = row_length(dy.size(1));
  SUPRA_CHECK(count <= INT32_MAX, "{} tokens; positions are 32-bit", count);
  const auto tiles = static_cast<unsigned>(ceil_div(count, tile));
  const int64_t pieces = ceil_div(count, piece), totals = int64_t{tiles} * digits;

  // Heads first: they are read in 16-byte packs.
  auto* heads = workspace_.take_array<float>(pieces * width + totals + 4 * count);
  auto* starts = reinterpret_cast<int*>(heads + pieces * width);
  const TokenList ways[] = {{starts + totals, starts + totals + count},
                            {starts + totals + 2 * count, starts + totals + 3 * count}};
  TokenList sorted{tokens.data<int32_t>(), nullptr};
  const int bits = std::bit_width(static_cast<uint64_t>(dweight.size(0) - 1));
  int pass = 0;
  do {
    const TokenList to = ways[pass % 2];
    const int shift = pass * digit_bits;
    launch(count_digits_kernel, tiles, sort_threads, 0, stream_, sorted.token, count, shift,
           starts);
    launch(exclusive_scan_kernel, 1, scan_threads, 0, stream_, starts, totals);
    launch(scatter_kernel, tiles, sort_threads, 0, stream_, sorted, to, count, shift, starts);
    sorted = to;
  } while (++pass * digit_bits < bits);

  with_type(dy.dtype(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int n = pack_size<T>;
    const bool wide = is_aligned(dy, dweight) && width % n == 0;
    const dim3 grid(static_cast<unsigned>(pieces),
                    static_cast<unsigned>(ceil_div(width, sum_threads * (wide ? n : 1))));
    launch(wide ? sum_pieces_kernel<T, n> : sum_pieces_kernel<T, 1>, grid, sum_threads, 0, stream_,
           sorted, count, dy.data<T>(), dweight.data<float>(), heads, width);
    launch(wide ? add_heads_kernel<n> : add_heads_kernel<1>, grid, sum_threads, 0, stream_,
           sorted.token, heads, dweight.data<float>(), pieces, width);
  });
}

}  // namespace supra::cuda
