#pragma once
// How CPU ops share work among threads, and reach the element type behind a tensor.

#include <cstdint>
#include <utility>

#include <omp.h>

#include "runtime/dtype.h"

namespace supra::cpu {

/// Calls f(i) for every i in [0, n), each once, on up to `threads` threads. `f` must not throw, and
/// what it computes for i must not depend on the thread it runs on.
template <class F>
void parallel_for(int threads, int64_t n, const F& f) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && n > 1)
  for (int64_t i = 0; i < n; ++i) f(i);
}

/// Calls f(begin, end) for consecutive blocks of `block` of [0, n).
template <class F>
void parallel_blocks(int threads, int64_t n, int64_t block, const F& f) {
  parallel_for(threads, (n + block - 1) / block,
               [&](int64_t i) { f(i * block, i * block + block < n ? i * block + block : n); });
}

inline int thread_index() {
  return omp_get_thread_num();
}

/// Calls f with a null pointer of the element type of an activation dtype.
template <class F>
void with_type(DType t, const F& f) {
  if (t == DType::bf16) {
    f(static_cast<bf16*>(nullptr));
  } else {
    f(static_cast<float*>(nullptr));
  }
}

}  // namespace supra::cpu
