// The emulator must find every mistake of tests/emulated/mutants.h, and nothing in the same
// programs without it.

#include <cmath>

#include <doctest/doctest.h>

#include "runtime/error.h"
#include "tests/emulated/mutants.h"
#include "tests/emulator/emulator.h"

using namespace supra;
using namespace supra::test;

namespace {

// Twice each combination of stream order, warp switching and lane order.
constexpr uint64_t seeds = 24;

/// bf16 outputs are right to one rounding, fp32 ones of small integers nearly exactly.
bool is_right(const Results& results) {
  if (results.actual.size() != results.expected.size()) return false;
  for (size_t i = 0; i < results.actual.size(); ++i) {
    const float tolerance = std::ldexp(std::abs(results.expected[i]), -8) + 1e-6F;
    if (!(std::abs(results.actual[i] - results.expected[i]) <= tolerance)) return false;
  }
  return true;
}

/// "" for right results, "wrong results", or the error.
std::string outcome(Results (*program)(Mistake), Mistake mistake, uint64_t seed) {
  emu::reset();
  emu::set_seed(seed);
  try {
    return is_right(program(mistake)) ? "" : "wrong results";
  } catch (const Error& error) {
    return error.what();
  }
}

/// Under every seed, `said` must be a part of what is found.
void check_caught(Results (*program)(Mistake), Mistake mistake, const std::string& said) {
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    CAPTURE(seed);
    const std::string found = outcome(program, mistake, seed);
    CAPTURE(found);
    CHECK(found.find(said) != std::string::npos);
  }
  emu::reset();
}

}  // namespace

TEST_CASE("emulator: right programs give the right numbers under every seed, and leave nothing") {
  for (auto* const program : {row_norm, tiled_product, chunked_scan, pipeline, repeated_graph}) {
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      CAPTURE(seed);
      CHECK(outcome(program, Mistake::none, seed) == "");
      CHECK(emu::leak_report() == "");
    }
  }
}

TEST_CASE("emulator: mistakes within a block are found under every seed") {
  check_caught(row_norm, Mistake::no_barrier, "shared-memory race");
  check_caught(row_norm, Mistake::conditional_barrier, "__syncthreads");
  check_caught(row_norm, Mistake::early_return, "exit");
  check_caught(row_norm, Mistake::wrong_shuffle_mask, "not in the mask");
  check_caught(row_norm, Mistake::divergent_shuffle, "divergence in a warp");
  check_caught(row_norm, Mistake::past_shared_array, "outside of its array");
  check_caught(tiled_product, Mistake::no_barrier, "race");
  check_caught(chunked_scan, Mistake::no_barrier, "shared-memory race");
  check_caught(chunked_scan, Mistake::no_warp_barrier, "shared-memory race");
}

TEST_CASE("emulator: mistakes with asynchronous copies are found under every seed") {
  check_caught(tiled_product, Mistake::weak_wait, "cp.async");
  check_caught(tiled_product, Mistake::no_commit, "cp.async");
  check_caught(tiled_product, Mistake::no_barrier_after_wait, "shared-memory race");
  check_caught(tiled_product, Mistake::no_wait_at_exit, "under way");
}

TEST_CASE("emulator: wrong accesses to memory are found under every seed") {
  check_caught(row_norm, Mistake::read_past_end, "out of bounds: 16-byte read");
  check_caught(row_norm, Mistake::write_past_end, "out of bounds: 2-byte write");
  check_caught(row_norm, Mistake::misaligned_access, "misaligned");
  check_caught(row_norm, Mistake::unwritten_row, "wrong results");
  check_caught(row_norm, Mistake::host_pointer, "memory that is not the device's");
  check_caught(row_norm, Mistake::blocks_share_a_sum, "race between blocks");
  check_caught(tiled_product, Mistake::misaligned_matrix_row, "misaligned");
  check_caught(tiled_product, Mistake::past_dynamic_shared, "out of bounds");
  check_caught(tiled_product, Mistake::no_zero_fill, "wrong results");
}

TEST_CASE("emulator: missing order between operations is found under every seed") {
  check_caught(pipeline, Mistake::no_event_before_compute, "race between streams");
  check_caught(pipeline, Mistake::no_event_before_reuse, "race between streams");
  check_caught(pipeline, Mistake::pinned_refilled_early, "host memory was changed");
  check_caught(pipeline, Mistake::host_reads_early, "wrong results");
  check_caught(repeated_graph, Mistake::wrong_graph_order, "race between streams");
}

TEST_CASE("emulator: misuse of the API is found under every seed") {
  check_caught(pipeline, Mistake::freed_memory_used, "that was freed");
  check_caught(pipeline, Mistake::freed_twice, "freed twice");
  check_caught(pipeline, Mistake::null_stream, "null stream");
  check_caught(pipeline, Mistake::wrong_copy_kind, "kind");
}
