#pragma once
// Programs for the GPU, each right as it stands and wrong in one way for every mistake planted in
// it. The emulator's tests run them: the right ones must give the right numbers under every seed,
// the wrong ones must be found out.

#include <string>
#include <vector>

namespace supra::test {

enum class Mistake {
  none,
  // Within a block.
  no_barrier,
  conditional_barrier,
  early_return,
  no_warp_barrier,
  wrong_shuffle_mask,
  divergent_shuffle,
  // Asynchronous copies.
  weak_wait,
  no_commit,
  no_barrier_after_wait,
  no_wait_at_exit,
  // Memory.
  read_past_end,
  write_past_end,
  past_shared_array,
  past_dynamic_shared,
  misaligned_access,
  misaligned_matrix_row,
  no_zero_fill,
  unwritten_row,
  host_pointer,
  blocks_share_a_sum,
  // Between operations.
  no_event_before_compute,
  no_event_before_reuse,
  pinned_refilled_early,
  host_reads_early,
  freed_memory_used,
  freed_twice,
  wrong_graph_order,
  null_stream,
  wrong_copy_kind,
};

struct Results {
  std::vector<float> actual, expected;
};

/// y = x / sqrt(mean(x^2) + eps) for each row, a block a row; bf16 in and out.
Results row_norm(Mistake mistake);
/// C = A B, bf16 with fp32 sums: tiles by cp.async in two buffers, ldmatrix, mma. K is no multiple
/// of the tile.
Results tiled_product(Mistake mistake);
/// s_t = a s_{t-1} + x_t for each column, a chunk of time steps at once, a warp a column.
Results chunked_scan(Mistake mistake);
/// Batches go through one page-locked buffer of two halves to the device on one stream, and are
/// scaled on another.
Results pipeline(Mistake mistake);
/// The same scaling, captured from two streams and launched several times.
Results repeated_graph(Mistake mistake);

}  // namespace supra::test
