#pragma once
// Scratch memory of CPU ops.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <sys/mman.h>

#include "runtime/error.h"

namespace supra::cpu {

/// Memory that grows to the largest request and stays, so that after the first step no op
/// allocates. 64-byte aligned, in huge pages from 2 MiB on. One per device and purpose; not
/// thread-safe.
class Scratch {
 public:
  /// Room for that many bytes, contents undefined. What an earlier call returned may be gone.
  void* get(size_t bytes) {
    if (bytes > bytes_) grow(bytes);
    return memory_.get();
  }
  template <class T>
  T* get(int64_t count) {
    SUPRA_CHECK(count >= 0 && static_cast<uint64_t>(count) <= SIZE_MAX / sizeof(T),
                "scratch memory for {} elements of {} bytes", count, sizeof(T));
    return static_cast<T*>(get(static_cast<size_t>(count) * sizeof(T)));
  }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t line = 64;
  static constexpr size_t huge_page = size_t{2} << 20;

  void grow(size_t bytes) {
    const size_t unit = bytes < huge_page ? line : huge_page;
    SUPRA_CHECK(bytes <= SIZE_MAX - unit, "scratch memory of {} bytes", bytes);
    const size_t rounded = (bytes + unit - 1) / unit * unit;
    memory_.reset();
    bytes_ = 0;
    memory_.reset(std::aligned_alloc(unit, rounded));
    SUPRA_CHECK(memory_, "no memory left for {} bytes of scratch", rounded);
    bytes_ = rounded;
#ifdef MADV_HUGEPAGE
    if (unit == huge_page) madvise(memory_.get(), rounded, MADV_HUGEPAGE);  // a hint, free to fail
#endif
  }

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t bytes_ = 0;
};

}  // namespace supra::cpu
