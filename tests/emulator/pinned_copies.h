#pragma once
// Copies from and to page-locked host memory, which host code may neither refill nor read before it
// knows that the copy is complete. What a copy puts into host memory appears there only when the
// host waits for it; until then the memory reads as NaN. What it takes is compared: with the
// contents at the call when the copy runs, and again when the host waits for it.

#include <cstddef>

#include "tests/emulator/streams.h"

namespace emu {

void enqueue_copy(cudaStream_t stream, void* to, const void* from, size_t bytes,
                  cudaMemcpyKind kind);
/// The host waited for something: copies that it now knows of become visible, or are compared.
void settle_pinned_copies();
/// The running operation touches these bytes: copies into them that ran before become visible.
void before_pinned_access(const Range& range);
void forget_pinned_copies();

}  // namespace emu
