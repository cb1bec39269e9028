// Races and bounds in device and pinned memory. A cell keeps the last write and the last read of
// two bytes. An access needs to come after the write: ordered by events if another operation made
// it, by a barrier if another thread of the block did, and never by another block of the launch. A
// write also needs to come after every read. A read that comes after the one before takes its
// place; readers without order (of different streams, say) are kept as a set, blocks of one launch
// as a mark.

#include <cstring>
#include <map>

#include "tests/emulator/access.h"
#include "tests/emulator/block.h"
#include "tests/emulator/epochs.h"
#include "tests/emulator/memory.h"
#include "tests/emulator/statistics.h"
#include "tests/emulator/symbols.h"

namespace emu {
namespace {

/// Values of read_thread that are no thread.
constexpr uint16_t several_blocks = 0xffff, before_last_write = 0xfffe;

struct Access {
  const char* p;
  size_t bytes;
  bool is_write;
  uint32_t code;
  uint16_t thread, warp_epoch;  ///< the thread plus one; 0 for what is no kernel
  uint32_t birth;               ///< of the buffer
};

const char* verb(bool is_write) {
  return is_write ? "write" : "read";
}
std::string place(uint32_t code) {
  return code ? " at " + source_line(code) : "";
}
/// "read at norm.cu:40"
std::string what(const Access& a) {
  return verb(a.is_write) + place(a.code);
}

[[noreturn]] void report_bounds(const Access& a) {
  EMU_FAIL("out of bounds: {}-byte {}, {}", a.bytes, what(a), describe(a.p));
}

/// What came before and is not ordered with the access: of an epoch of this launch or before it.
[[noreturn]] void report_race(const Access& a, bool other_is_write, uint32_t epoch, uint32_t code) {
  stop_checking();
  const std::string other = verb(other_is_write) + place(code);
  if (epoch >= now.block) {
    EMU_FAIL("race in a block: {} and another thread's {} with no barrier between, {}", what(a),
             other, describe(a.p));
  }
  if (epoch >= now.operation) {
    EMU_FAIL("race between blocks of a launch: {} and another block's {}, {}", what(a), other,
             describe(a.p));
  }
  EMU_FAIL("race between streams: {} by {} and {} by {} are not ordered by any event, {}", what(a),
           describe_running_operation(), other, describe_operation(epoch), describe(a.p));
}

/// Reads of operations without order among each other, apart from the cell's own.
struct Reader {
  uint32_t epoch, code;
  auto operator<=>(const Reader&) const = default;
};
using Readers = std::vector<Reader>;

/// Sets are kept once each, and cells name them by number.
struct ReaderSets {
  std::vector<Readers> sets{{}};
  std::map<Readers, uint32_t> numbers{{{}, 0}};

  uint32_t number_of(const Readers& readers) {
    const auto [entry, is_new] = numbers.try_emplace(readers, sets.size());
    if (is_new) sets.push_back(readers);
    return entry->second;
  }
};
ReaderSets& reader_sets() {
  static auto& self = *new ReaderSets;
  return self;
}

/// The readers so far that do not come before the running operation.
uint32_t unordered_readers(const GlobalCell& c) {
  if (!c.other_readers && is_ordered(c.read_epoch)) return 0;
  Readers readers;
  for (const Reader& r : reader_sets().sets[c.other_readers]) {
    if (!is_ordered(r.epoch)) readers.push_back(r);
  }
  if (c.read_thread != before_last_write && !is_ordered(c.read_epoch)) {
    readers.push_back({c.read_epoch, c.read_code});
  }
  return reader_sets().number_of(readers);
}

/// Whether an access of another thread in this block, with this epoch, comes before.
bool is_before_in_block(const Access& a, uint32_t epoch, uint16_t thread, uint16_t warp_epoch) {
  if (epoch != now.epoch || thread == a.thread) return true;
  const bool same_warp = (thread - 1) / lanes == (a.thread - 1U) / lanes;
  return same_warp && warp_epoch != a.warp_epoch;
}

inline __attribute__((always_inline)) void check_after_write(const Access& a, const GlobalCell& c) {
  const uint32_t epoch = c.write_epoch;
  const bool ordered = epoch >= now.block
                           ? is_before_in_block(a, epoch, c.write_thread, c.write_warp_epoch)
                           : epoch < now.operation && is_ordered(epoch);
  if (!ordered) report_race(a, true, epoch, c.write_code);
}

void check_after_reads(const Access& a, const GlobalCell& c) {
  for (const Reader& r : reader_sets().sets[c.other_readers]) {
    if (!is_ordered(r.epoch)) report_race(a, false, r.epoch, r.code);
  }
  if (c.read_thread == before_last_write) return;
  if (c.read_thread == several_blocks && c.read_epoch >= now.operation) {
    report_race(a, false, now.operation, c.read_code);
  }
  const uint32_t epoch = c.read_epoch;
  const bool ordered = epoch >= now.block
                           ? is_before_in_block(a, epoch, c.read_thread, c.read_warp_epoch)
                           : epoch < now.operation && is_ordered(epoch);
  if (!ordered) report_race(a, false, epoch, c.read_code);
}

inline __attribute__((always_inline)) void write_cell(const Access& a, GlobalCell& c) {
  if (c.write_epoch >= a.birth) check_after_write(a, c);
  if (c.read_epoch >= a.birth) check_after_reads(a, c);
  if (c.write_epoch < now.operation) running_kernel.distinct_written += 2;
  c.write_epoch = now.epoch;
  c.write_thread = a.thread;
  c.write_warp_epoch = a.warp_epoch;
  c.write_code = a.code;
  c.read_thread = before_last_write;
  c.other_readers = 0;
}

inline __attribute__((always_inline)) void read_cell(const Access& a, GlobalCell& c) {
  if (c.write_epoch >= a.birth) check_after_write(a, c);
  if (c.read_epoch < a.birth) {
    c.other_readers = 0;
    c.read_thread = a.thread;
  } else if (c.read_epoch < now.operation) {
    c.other_readers = unordered_readers(c);
    c.read_thread = a.thread;
  } else if (c.read_epoch < now.block && c.read_thread != before_last_write) {
    c.read_thread = several_blocks;
  } else if (c.read_thread != several_blocks) {
    c.read_thread = a.thread;
  }
  if (c.read_epoch < now.operation) running_kernel.distinct_read += 2;
  c.read_epoch = now.epoch;
  c.read_warp_epoch = a.warp_epoch;
  c.read_code = a.code;
}

/// Bytes that nobody wrote since the buffer was allocated hold whatever was there: NaN.
void poison(const Access& a, const GlobalCell* cell) {
  const auto first = reinterpret_cast<uintptr_t>(a.p) & ~uintptr_t{1};
  const auto last = reinterpret_cast<uintptr_t>(a.p) + a.bytes;
  for (uintptr_t at = first; at < last; at += 2, ++cell) {
    if (cell->write_epoch >= a.birth) continue;
    std::memset(reinterpret_cast<void*>(at), 0xff, std::min<size_t>(2, last - at));
  }
}

}  // namespace

void access_global(const char* p, size_t bytes, bool is_write, uint32_t code) {
  if (bytes == 0) return;
  const Buffer* const buffer = buffer_at(p);
  Access a{p, bytes, is_write, code, 0, 0, 0};
  if (!buffer || buffer->freed || p < buffer->address ||
      p + bytes > buffer->address + buffer->bytes) {
    report_bounds(a);
  }
  a.birth = buffer->birth;
  if (current) {
    a.thread = static_cast<uint16_t>(current->linear + 1);
    a.warp_epoch = warp_of(*current).epoch;
  }
  GlobalCell* const first = global_cells + cell_index(p);
  GlobalCell* const end = global_cells + cell_index(p + bytes - 1) + 1;
  if (is_write) {
    running_kernel.written += bytes;
    for (GlobalCell* c = first; c != end; ++c) write_cell(a, *c);
    return;
  }
  running_kernel.read += bytes;
  bool unwritten = false;
  for (GlobalCell* c = first; c != end; ++c) {
    read_cell(a, *c);
    unwritten |= c->write_epoch < a.birth;
  }
  if (unwritten && !buffer->pinned) poison(a, first);
}

}  // namespace emu
