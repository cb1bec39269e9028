// Races and bounds in shared memory. Each two bytes have a cell: last write and last reads since
// the barriers that order them. Two accesses by different threads, one of them a write, need a
// __syncthreads between them, or, in one warp, a __syncwarp. Reads keep the set of warps, and for
// one warp whether one lane or several read: enough to find every unordered reader of a later
// write.

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

#include "tests/emulator/block.h"
#include "tests/emulator/epochs.h"
#include "tests/emulator/memory.h"
#include "tests/emulator/shared_memory.h"
#include "tests/emulator/symbols.h"

namespace emu {
namespace {

struct SharedCell {
  uint32_t write_epoch, read_epoch;  ///< of the block's barriers
  uint32_t write_code, read_code;
  uint32_t reading_warps;  ///< since the epoch began
  uint16_t write_thread, read_thread;
  uint16_t write_warp_epoch, read_warp_epoch;
  uint16_t copying_thread;  ///< whose cp.async is under way, plus one
};

constexpr uint16_t several_lanes = 0xffff;
constexpr size_t span = (max_dynamic_shared + 1023) / 1024 * 1024;
/// No shared address is 0, as on the GPU a null pointer is none.
constexpr uint32_t first_dynamic = 1024, first_static = 0x100000;

void* map_pages(size_t bytes) {
  void* const range = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) {
    std::perror("emulator: shared memory");
    std::abort();
  }
  return range;
}

// Mapped at the first launch.
char* dynamic_begin;
SharedCell *dynamic_cells, *static_cells;
size_t static_bytes;

void map_shared() {
  dynamic_begin = static_cast<char*>(map_pages(span + page_bytes));
  mprotect(dynamic_begin + span, page_bytes, PROT_NONE);
  dynamic_cells = static_cast<SharedCell*>(map_pages(span / 2 * sizeof(SharedCell)));
  static_bytes = thread_local_bytes();
  static_cells = static_cast<SharedCell*>(map_pages((static_bytes / 2 + 1) * sizeof(SharedCell)));
}

bool is_dynamic(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - dynamic_begin) < span + page_bytes;
}
size_t static_offset(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - block.thread_local_block);
}
bool is_static(const void* p) {
  return static_offset(p) < static_bytes;
}

const ThreadLocalObject* shared_array_at(const char* p) {
  static const ThreadLocalObject* last = nullptr;
  const size_t offset = static_offset(p);
  if (!last || offset - last->offset >= last->bytes) last = thread_local_at(offset);
  return last;
}

bool is_inside(const char* p, size_t bytes) {
  if (is_dynamic(p)) return p >= block.shared && p + bytes <= block.shared + block.shared_bytes;
  const ThreadLocalObject* const array = shared_array_at(p);
  return array && static_offset(p) + bytes <= array->offset + array->bytes;
}

SharedCell* cell_of(const char* p) {
  return is_dynamic(p) ? dynamic_cells + (p - dynamic_begin) / 2
                       : static_cells + static_offset(p) / 2;
}

struct Access {
  const char* p;
  size_t bytes;
  bool is_write;
  uint32_t code;
};

const char* verb(bool is_write) {
  return is_write ? "write" : "read";
}

[[noreturn]] void report_bounds(const Access& a) {
  EMU_FAIL("out of bounds: {}-byte {} at {}, {}", a.bytes, verb(a.is_write), source_line(a.code),
           describe(a.p));
}

[[noreturn]] void report_race(const Access& a, bool other_is_write, uint16_t thread,
                              uint32_t code) {
  EMU_FAIL("shared-memory race: {} at {} and {} by {} at {} with no barrier between, {}",
           verb(a.is_write), source_line(a.code), verb(other_is_write),
           thread == several_lanes ? "other lanes" : fmt::format("thread {}", thread),
           source_line(code), describe(a.p));
}

[[noreturn]] void report_copying(const Access& a, const SharedCell& cell) {
  EMU_FAIL("{} at {} of bytes that a cp.async of thread {} is still to write, {}", verb(a.is_write),
           source_line(a.code), cell.copying_thread - 1, describe(a.p));
}

/// Bytes that no thread of this block has written hold whatever was there: NaN.
void poison(const char* p, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  for (size_t i = 0; i < bytes; ++i) {
    if (cell_of(p + i)->write_epoch < now.block) reinterpret_cast<char*>(address)[i] = '\xff';
  }
}

}  // namespace

void place_dynamic_shared(size_t bytes) {
  if (!dynamic_begin) map_shared();
  block.shared = dynamic_begin + span - (bytes + 1023) / 1024 * 1024;
  block.shared_bytes = bytes;
}

char* dynamic_shared() {
  return block.shared;
}

bool is_shared(const void* p) {
  return is_dynamic(p) || is_static(p);
}

uint32_t shared_address(const void* pointer) {
  if (is_dynamic(pointer)) {
    return first_dynamic + static_cast<uint32_t>(static_cast<const char*>(pointer) - block.shared);
  }
  if (is_static(pointer)) return first_static + static_cast<uint32_t>(static_offset(pointer));
  EMU_FAIL("the shared address of {} is asked for", describe(pointer));
}

char* shared_pointer(uint32_t address, const char* instruction) {
  char* const p = address >= first_static ? block.thread_local_block + (address - first_static)
                                          : block.shared + (address - first_dynamic);
  if (!is_shared(p) || !is_inside(p, 16)) {
    EMU_FAIL("{}: 16 bytes at {} are out of bounds", instruction, describe(p));
  }
  if (reinterpret_cast<uintptr_t>(p) % 16) {
    EMU_FAIL("{}: misaligned, {} is not at a multiple of 16 bytes", instruction, describe(p));
  }
  return p;
}

void access_shared(const char* p, size_t bytes, bool is_write, uint32_t code) {
  const Access access{p, bytes, is_write, code};
  if (!is_inside(p, bytes)) report_bounds(access);
  const auto thread = static_cast<uint16_t>(current->linear);
  const unsigned warp = current->warp, my_warp = 1U << warp;
  const uint16_t warp_epoch = warp_of(*current).epoch;
  SharedCell* const first = cell_of(p);
  SharedCell* const end = first + (reinterpret_cast<uintptr_t>(p) % 2 + bytes + 1) / 2;
  bool unwritten = false;
  for (SharedCell* c = first; c != end; ++c) {
    // (A block that was given up may have left its copies' marks.)
    if (c->copying_thread && c->write_epoch >= now.block) report_copying(access, *c);
    if (c->write_epoch == now.epoch && c->write_thread != thread &&
        !(c->write_thread / lanes == warp && c->write_warp_epoch != warp_epoch)) {
      report_race(access, true, c->write_thread, c->write_code);
    }
    if (is_write) {
      if (c->read_epoch == now.epoch) {
        const bool by_other_warp = c->reading_warps & ~my_warp;
        const bool by_other_lane = c->read_warp_epoch == warp_epoch && c->read_thread != thread;
        if (by_other_warp || by_other_lane) {
          report_race(access, false, by_other_warp ? several_lanes : c->read_thread, c->read_code);
        }
      }
      c->write_epoch = now.epoch;
      c->write_thread = thread;
      c->write_warp_epoch = warp_epoch;
      c->write_code = code;
      c->read_epoch = 0;
    } else {
      unwritten |= c->write_epoch < now.block;
      if (c->read_epoch != now.epoch) {
        c->read_epoch = now.epoch;
        c->reading_warps = my_warp;
        c->read_thread = thread;
      } else {
        // Which lane read is of use only while no other warp did.
        c->reading_warps |= my_warp;
        if (c->read_warp_epoch != warp_epoch) {
          c->read_thread = thread;
        } else if (c->read_thread != thread) {
          c->read_thread = several_lanes;
        }
      }
      c->read_warp_epoch = warp_epoch;
      c->read_code = code;
    }
  }
  if (unwritten) poison(p, bytes);
}

void begin_async_write(const char* p, size_t bytes) {
  SharedCell* const first = cell_of(p);
  for (SharedCell* c = first; c != first + bytes / 2; ++c) {
    c->copying_thread = static_cast<uint16_t>(current->linear + 1);
  }
}

void end_async_write(const char* p, size_t bytes) {
  SharedCell* const first = cell_of(p);
  for (SharedCell* c = first; c != first + bytes / 2; ++c) c->copying_thread = 0;
}

std::string describe_shared(const void* p) {
  const auto* const address = static_cast<const char*>(p);
  if (is_dynamic(p)) {
    return fmt::format("byte {:+d} of {} bytes of dynamic shared memory", address - block.shared,
                       block.shared_bytes);
  }
  if (!block.thread_local_block || !is_static(p)) return "";
  const ThreadLocalObject* const array = shared_array_at(address);
  if (!array) return "memory beside the static shared arrays";
  return fmt::format("byte {:+d} of the {}-byte static shared array {}",
                     static_cast<ptrdiff_t>(static_offset(p) - array->offset), array->bytes,
                     array_name(*array));
}

}  // namespace emu
