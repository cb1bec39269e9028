#pragma once
// Device memory and page-locked host memory: one reserved range of addresses each. Buffers lie in
// whole pages of their own with a free page between them; freed ones wait in quarantine before
// their addresses are used again. Device memory is inaccessible except while an operation runs, so
// that host code that touches it faults.
//
// Every two bytes have a shadow cell that says who wrote and read them last (see
// global_access.cpp). Poison is a matter of the shadow, too: bytes that nobody wrote since their
// buffer was allocated become 0xFF, a NaN in bf16 and fp32, when they are read first.

#include <cstddef>
#include <cstdint>
#include <string>

#include "tests/emulator/errors.h"

namespace emu {

struct Buffer {
  char* address;
  size_t bytes;
  uint32_t birth;  ///< the epoch since which accesses count
  bool freed, pinned;
};

/// Last write and last read of two bytes. Epochs name an operation, block and barrier interval.
struct GlobalCell {
  uint32_t write_epoch, read_epoch;
  uint32_t write_code, read_code;
  uint32_t other_readers;  ///< a set of unordered earlier readers (global_access.cpp); 0: none
  uint16_t write_thread, read_thread;
  uint16_t write_warp_epoch, read_warp_epoch;
};

inline constexpr size_t page_bytes = 4096;
/// Bytes checked before and after a buffer for writes by code that is not instrumented.
inline constexpr size_t canary_bytes = 256;
/// Reserved addresses; only pages that are touched take memory.
inline constexpr size_t device_space = size_t{8} << 30, pinned_space = size_t{2} << 30;

/// Start of the reserved addresses: device memory, then pinned memory.
extern char* memory_base;
extern GlobalCell* global_cells;
extern uint32_t* page_owners;  ///< index of a page's buffer; 0: none

inline bool is_emulated(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - memory_base) <
         device_space + pinned_space;
}
inline bool is_device(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - memory_base) < device_space;
}
inline bool is_pinned(const void* p) {
  return is_emulated(p) && !is_device(p);
}
inline size_t cell_index(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - memory_base) / 2;
}

extern const Buffer* buffer_table;
/// The buffer whose pages contain p, also when it is freed; null in between.
inline const Buffer* buffer_at(const void* p) {
  const uint32_t owner =
      page_owners[static_cast<size_t>(static_cast<const char*>(p) - memory_base) / page_bytes];
  return owner ? buffer_table + owner : nullptr;
}

/// Null when memory is full: SUPRA_EMULATOR_MEMORY MiB, by default 4096, hold the live buffers.
void* allocate_device(size_t bytes);
void* allocate_pinned(size_t bytes);
/// Fails for what is not the address of a live buffer of that kind, and for overwritten canaries.
void free_device(void* address);
void free_pinned(void* address);
/// Every buffer, as if never allocated.
void forget_memory();

size_t device_capacity();
size_t device_used();
/// "2 device buffers (1024, 64 bytes)"; empty if there is none.
std::string live_buffers();

/// "byte +12 of a 64-byte device buffer (freed)"
std::string describe(const void* p);

/// Makes device memory accessible, or not, to the host.
void unlock_device_memory();
void lock_device_memory();

}  // namespace emu
