#include <cmath>
#include <cstring>

#include "runtime/cuda/handles.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/ptx.h"
#include "runtime/cuda/vector.cuh"
#include "tests/cuda/device_array.h"
#include "tests/emulated/mutants.h"

namespace supra::test {
namespace {

using namespace cuda;

/// Small integers and halves, exact in bf16.
float sample(size_t i) {
  return static_cast<float>(static_cast<int>(i * 7919 % 17) - 8) / 2;
}

std::vector<bfloat16> samples(size_t n) {
  std::vector<bfloat16> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = __float2bfloat16_rn(sample(i));
  return values;
}

std::vector<float> widened(const std::vector<bfloat16>& values) {
  std::vector<float> wide;
  for (const bfloat16 x : values) wide.push_back(__bfloat162float(x));
  return wide;
}

constexpr int norm_threads = 128, norm_warps = norm_threads / warp_size;
constexpr float norm_eps = 1e-5F;

template <Mistake mistake>
__global__ void __launch_bounds__(norm_threads)
    row_norm_kernel(const bfloat16* x, bfloat16* y, float* scratch, int d) {
  using Pack8 = Pack<bfloat16>;
  __shared__ float partial[norm_warps];
  const int thread = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.x);
  if (mistake == Mistake::early_return && thread * 8 >= d) return;
  const size_t begin = static_cast<size_t>(row) * d;
  const int packs = d / 8 + (mistake == Mistake::read_past_end ? 1 : 0);
  float sum = 0;
  for (int i = thread; i < packs; i += norm_threads) {
    const int shift = mistake == Mistake::misaligned_access && i == 0 ? 1 : 0;
    const Pack8 pack = *reinterpret_cast<const Pack8*>(x + begin + i * 8 + shift);
    for (int j = 0; j < 8; ++j) sum += widen(pack.at[j]) * widen(pack.at[j]);
  }
  for (int offset = warp_size / 2; offset > 0; offset /= 2) {
    if (mistake == Mistake::wrong_shuffle_mask) {
      sum += __shfl_xor_sync(0x7fffffffU, sum, offset);
    } else if (mistake == Mistake::divergent_shuffle && thread == 5) {
      sum += __shfl_xor_sync(whole_warp, sum, offset);
    } else {
      sum += __shfl_xor_sync(whole_warp, sum, offset);
    }
  }
  const int slot = thread / warp_size + (mistake == Mistake::past_shared_array ? 1 : 0);
  if (thread % warp_size == 0) partial[slot] = sum;
  if (mistake == Mistake::conditional_barrier) {
    if (thread < norm_threads / 2) __syncthreads();
  }
  if (mistake != Mistake::no_barrier) __syncthreads();
  sum = 0;
  for (int w = 0; w < norm_warps; ++w) sum += partial[w];
  const float scale = rsqrtf(sum / static_cast<float>(d) + norm_eps);
  // As if the blocks were to add up their scales.
  if (mistake == Mistake::blocks_share_a_sum && thread == 0) *scratch += scale;
  const bool is_last = blockIdx.x + 1 == gridDim.x;
  const int end = d + (mistake == Mistake::write_past_end && is_last ? 1 : 0);
  for (int i = thread; i < end; i += norm_threads) {
    y[begin + i] = narrow<bfloat16>(widen(x[begin + (i < d ? i : 0)]) * scale);
  }
}

template <Mistake mistake>
Results run_row_norm() {
  constexpr int rows = 5, d = 72;
  const Stream stream;
  const auto x = samples(size_t{rows} * d);
  const DeviceArray<bfloat16> dx(x, stream), dy(x.size());
  const DeviceArray<float> scratch(1);
  const bfloat16* const from = mistake == Mistake::host_pointer ? x.data() : dx.data();
  const int blocks = rows - (mistake == Mistake::unwritten_row ? 1 : 0);
  launch(row_norm_kernel<mistake>, blocks, norm_threads, 0, stream.get(), from, dy.data(),
         scratch.data(), d);
  Results results{widened(dy.download(stream)), {}};
  for (int row = 0; row < rows; ++row) {
    double sum = 0;
    for (int i = 0; i < d; ++i) sum += std::pow(sample(size_t(row) * d + i), 2);
    for (int i = 0; i < d; ++i) {
      const double y = sample(size_t(row) * d + i) / std::sqrt(sum / d + norm_eps);
      results.expected.push_back(static_cast<float>(y));
    }
  }
  return results;
}

// 32x32 outputs a block, 16 of k at a time. Rows of shared tiles are 48 and 80 bytes: eight rows of
// 16 bytes then lie in eight different groups of banks.
constexpr int tile = 32, tile_k = 16, a_row = tile_k + 8, b_row = tile + 8;
constexpr int product_threads = 128;

struct ProductTiles {
  bfloat16 a[2][tile * a_row], b[2][tile_k * b_row];
};

template <Mistake mistake>
__global__ void __launch_bounds__(product_threads)
    product_kernel(const bfloat16* a, const bfloat16* b, float* c, int n, int k) {
  SUPRA_DYNAMIC_SHARED(ProductTiles, tiles);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size;
  const int warp_row = thread / warp_size / 2 * 16, warp_column = thread / warp_size % 2 * 16;
  const int row0 = static_cast<int>(blockIdx.y) * tile,
            column0 = static_cast<int>(blockIdx.x) * tile;

  // 64 threads copy each tile, 16 bytes each of A's 32 rows and of B's 16.
  const auto load = [&](int step) {
    const int buffer = step % 2, k0 = step * tile_k;
    if (thread < 64) {
      const int row = thread / 2, column = k0 + thread % 2 * 8;
      const bool inside = column < k;
      bfloat16* const to = &tiles->a[buffer][row * a_row + thread % 2 * 8];
      const bfloat16* const from = a + static_cast<size_t>(row0 + row) * k + (inside ? column : 0);
      if (inside || mistake != Mistake::no_zero_fill) {
        cp_async_16(shared_address(to), from, inside ? 16 : 0);
      }
    } else {
      const int row = (thread - 64) / 4, column = thread % 4 * 8;
      const bool inside = k0 + row < k;
      bfloat16* const to = &tiles->b[buffer][row * b_row + column];
      const bfloat16* const from =
          b + static_cast<size_t>(inside ? k0 + row : 0) * n + column0 + column;
      if (inside || mistake != Mistake::no_zero_fill) {
        cp_async_16(shared_address(to), from, inside ? 16 : 0);
      }
    }
    if (mistake != Mistake::no_commit) cp_async_commit();
  };

  float sum[2][4] = {};
  const int steps = (k + tile_k - 1) / tile_k;
  load(0);
  for (int step = 0; step < steps; ++step) {
    const int buffer = step % 2;
    if (step + 1 < steps) {
      load(step + 1);
      cp_async_wait<mistake == Mistake::weak_wait ? 2 : 1>();
    } else if (mistake != Mistake::no_wait_at_exit) {
      cp_async_wait<0>();
    }
    if (mistake != Mistake::no_barrier_after_wait) __syncthreads();
    if (mistake != Mistake::no_wait_at_exit || step + 1 < steps) {
      uint32_t fragment_a[4], fragment_b[4];
      const int shift = mistake == Mistake::misaligned_matrix_row ? 1 : 0;
      const int past = mistake == Mistake::past_dynamic_shared && step == 1 ? tile_k : 0;
      ldmatrix_x4(fragment_a,
                  shared_address(
                      &tiles->a[buffer][(warp_row + lane % 16) * a_row + lane / 16 * 8 + shift]));
      ldmatrix_x4_trans(fragment_b, shared_address(tiles->b[buffer] + (past + lane % 16) * b_row +
                                                   warp_column + lane / 16 * 8));
      mma_16x8x16(sum[0], fragment_a, fragment_b[0], fragment_b[1]);
      mma_16x8x16(sum[1], fragment_a, fragment_b[2], fragment_b[3]);
    }
    if (mistake != Mistake::no_barrier) __syncthreads();
  }
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + warp_row + lane / 4 + i / 2 * 8;
      const int column = column0 + warp_column + j * 8 + lane % 4 * 2 + i % 2;
      c[static_cast<size_t>(row) * n + column] = sum[j][i];
    }
  }
}

template <Mistake mistake>
Results run_product() {
  constexpr int m = 64, n = 32, k = 56;
  const Stream stream;
  const auto a = samples(size_t{m} * k), b = samples(size_t{k} * n);
  const DeviceArray<bfloat16> da(a, stream), db(b, stream);
  const DeviceArray<float> dc(size_t{m} * n);
  launch(product_kernel<mistake>, dim3(n / tile, m / tile), product_threads, sizeof(ProductTiles),
         stream.get(), da.data(), db.data(), dc.data(), n, k);
  Results results{dc.download(stream), {}};
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int l = 0; l < k; ++l) sum += sample(size_t(i) * k + l) * sample(size_t(l) * n + j);
      results.expected.push_back(sum);
    }
  }
  return results;
}

constexpr int scan_warps = 2, chunk = warp_size;
constexpr float decay = 0.5F;

/// Warp w scans column 2 blockIdx.x + w. Time steps of a chunk change hands through shared memory,
/// last first, so that lanes read what other lanes wrote.
template <Mistake mistake>
__global__ void scan_kernel(const float* x, float* s, int steps, int columns) {
  __shared__ float exchange[scan_warps][chunk];
  __shared__ float totals[scan_warps];
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int column = static_cast<int>(blockIdx.x) * scan_warps + warp;
  float carried = 0;
  for (int t0 = 0; t0 < steps; t0 += chunk) {
    exchange[warp][chunk - 1 - lane] = x[static_cast<size_t>(t0 + lane) * columns + column];
    if (mistake != Mistake::no_warp_barrier) __syncwarp();
    float sum = exchange[warp][chunk - 1 - lane], weight = decay;
    // The neighbours' values are read from shared memory, not shuffled, for the sake of the
    // barrier.
    for (int back = 1; back <= lane; ++back, weight *= decay) {
      sum += weight * exchange[warp][chunk - 1 - lane + back];
    }
    sum += carried * exp2f(-static_cast<float>(lane + 1));
    s[static_cast<size_t>(t0 + lane) * columns + column] = sum;
    carried = __shfl_sync(whole_warp, sum, warp_size - 1);
    if (lane == 0) totals[warp] = carried;
    __syncwarp();
  }
  if (mistake != Mistake::no_barrier) __syncthreads();
  // The last row holds the sum of both columns' last states, in both.
  if (lane == 0) s[static_cast<size_t>(steps) * columns + column] = totals[0] + totals[1];
}

template <Mistake mistake>
Results run_scan() {
  constexpr int steps = 2 * chunk, columns = 4;
  const Stream stream;
  std::vector<float> x(size_t{steps} * columns);
  for (size_t i = 0; i < x.size(); ++i) x[i] = sample(i);
  const DeviceArray<float> dx(x, stream), ds(x.size() + columns);
  launch(scan_kernel<mistake>, columns / scan_warps, scan_warps * warp_size, 0, stream.get(),
         dx.data(), ds.data(), steps, columns);
  Results results{ds.download(stream), std::vector<float>(x.size() + columns)};
  std::vector<double> state(columns);
  for (size_t i = 0; i < x.size(); ++i) {
    double& column = state[i % columns];
    column = decay * column + x[i];
    results.expected[i] = static_cast<float>(column);
  }
  for (int c = 0; c < columns; ++c) {
    results.expected[x.size() + c] = static_cast<float>(state[c / 2 * 2] + state[c / 2 * 2 + 1]);
  }
  return results;
}

__global__ void scale_kernel(const float* x, float* y, float factor, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = factor * x[i];
}

void scale(const float* x, float* y, float factor, int n, cudaStream_t stream) {
  launch(scale_kernel, (n + 63) / 64, 64, 0, stream, x, y, factor, n);
}

float batch_value(int batch, int i) {
  return static_cast<float>(batch * 1000 + i);
}

template <Mistake mistake>
Results run_pipeline() {
  constexpr int n = 100, batches = 5;
  const Stream upload, compute;
  const PinnedArray<float> host(size_t{2} * n), back(size_t{batches} * n);
  DeviceArray<float> device(size_t{2} * n);
  const DeviceArray<float> results(size_t{batches} * n);
  Event arrived[2], used[2];
  for (int batch = 0; batch < batches; ++batch) {
    const int half = batch % 2;
    float* const staged = host.data() + half * n;
    float* const on_device = device.data() + half * n;
    if (batch >= 2 && mistake != Mistake::pinned_refilled_early) arrived[half].synchronize();
    for (int i = 0; i < n; ++i) staged[i] = batch_value(batch, i);
    if (batch >= 2 && mistake != Mistake::no_event_before_reuse) {
      used[half].hold_back(upload.get());
    }
    const auto kind =
        mistake == Mistake::wrong_copy_kind ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
    check_cuda(cudaMemcpyAsync(on_device, staged, n * sizeof(float), kind,
                               mistake == Mistake::null_stream ? nullptr : upload.get()),
               "cudaMemcpyAsync");
    arrived[half].record(upload.get());
    if (mistake != Mistake::no_event_before_compute) arrived[half].hold_back(compute.get());
    scale(on_device, results.data() + batch * n, 2, n, compute.get());
    used[half].record(compute.get());
  }
  if (mistake == Mistake::freed_memory_used) {
    compute.synchronize();
    const float* const gone = device.data();
    device.release();
    scale(gone, results.data(), 2, n, compute.get());
  }
  if (mistake == Mistake::freed_twice) {
    check_cuda(cudaFree(device.data()), "cudaFree");
    check_cuda(cudaFree(device.data()), "cudaFree");
  }
  check_cuda(cudaMemcpyAsync(back.data(), results.data(), back.bytes(), cudaMemcpyDeviceToHost,
                             compute.get()),
             "cudaMemcpyAsync");
  if (mistake != Mistake::host_reads_early) compute.synchronize();
  Results read{{back.data(), back.data() + back.size()}, {}};
  compute.synchronize();
  upload.synchronize();
  for (int i = 0; i < batches * n; ++i) read.expected.push_back(2 * batch_value(i / n, i % n));
  return read;
}

/// x -> 2x on the side stream -> 6x on the origin.
template <Mistake mistake>
void capture_scaling(const Stream& origin, const Stream& side, const DeviceArray<float>& x,
                     const DeviceArray<float>& doubled, const DeviceArray<float>& y) {
  const int n = static_cast<int>(x.size());
  Event fork, join;
  fork.record(origin.get());
  fork.hold_back(side.get());
  if (mistake == Mistake::wrong_graph_order) join.record(side.get());
  scale(x.data(), doubled.data(), 2, n, side.get());
  if (mistake != Mistake::wrong_graph_order) join.record(side.get());
  join.hold_back(origin.get());
  scale(doubled.data(), y.data(), 3, n, origin.get());
  if (mistake == Mistake::wrong_graph_order) {
    join.record(side.get());
    join.hold_back(origin.get());
  }
}

template <Mistake mistake>
Results run_graph() {
  constexpr int n = 100;
  const Stream origin, side;
  const std::vector<float> ones(n, 1.0F);
  const DeviceArray<float> x(ones, origin), doubled(n), y(n);
  check_cuda(cudaStreamBeginCapture(origin.get(), cudaStreamCaptureModeThreadLocal), "capture");
  capture_scaling<mistake>(origin, side, x, doubled, y);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check_cuda(cudaStreamEndCapture(origin.get(), &graph), "cudaStreamEndCapture");
  check_cuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  check_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
  for (int i = 0; i < 3; ++i) {
    check_cuda(cudaGraphLaunch(exec, origin.get()), "cudaGraphLaunch");
    // The next launch scales this one's result.
    check_cuda(cudaMemcpyAsync(const_cast<float*>(x.data()), y.data(), n * sizeof(float),
                               cudaMemcpyDeviceToDevice, origin.get()),
               "cudaMemcpyAsync");
  }
  Results results{y.download(origin), std::vector<float>(n, 216.0F)};
  check_cuda(cudaGraphExecDestroy(exec), "cudaGraphExecDestroy");
  return results;
}

/// Calls `run` with the mistake as a template argument, if it is one of those listed.
template <Mistake... offered, class F>
Results with_mistake(Mistake mistake, const F& run) {
  Results results;
  const auto call = [&]<Mistake m>(std::integral_constant<Mistake, m> constant) {
    if (m == mistake) results = run(constant);
  };
  (call(std::integral_constant<Mistake, offered>()), ...);
  if (results.expected.empty()) fail_internal("this program has no such mistake");
  return results;
}

}  // namespace

Results row_norm(Mistake mistake) {
  using enum Mistake;
  return with_mistake<none, no_barrier, conditional_barrier, early_return, wrong_shuffle_mask,
                      divergent_shuffle, read_past_end, write_past_end, past_shared_array,
                      misaligned_access, unwritten_row, host_pointer, blocks_share_a_sum>(
      mistake, [](auto m) { return run_row_norm<decltype(m)::value>(); });
}

Results tiled_product(Mistake mistake) {
  using enum Mistake;
  return with_mistake<none, no_barrier, weak_wait, no_commit, no_barrier_after_wait,
                      no_wait_at_exit, misaligned_matrix_row, past_dynamic_shared, no_zero_fill>(
      mistake, [](auto m) { return run_product<decltype(m)::value>(); });
}

Results chunked_scan(Mistake mistake) {
  using enum Mistake;
  return with_mistake<none, no_barrier, no_warp_barrier>(
      mistake, [](auto m) { return run_scan<decltype(m)::value>(); });
}

Results pipeline(Mistake mistake) {
  using enum Mistake;
  return with_mistake<none, no_event_before_compute, no_event_before_reuse, pinned_refilled_early,
                      host_reads_early, freed_memory_used, freed_twice, null_stream,
                      wrong_copy_kind>(mistake,
                                       [](auto m) { return run_pipeline<decltype(m)::value>(); });
}

Results repeated_graph(Mistake mistake) {
  using enum Mistake;
  return with_mistake<none, wrong_graph_order>(
      mistake, [](auto m) { return run_graph<decltype(m)::value>(); });
}

}  // namespace supra::test
