#include "tests/emulator/memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <sys/mman.h>
#include <vector>

#include "tests/emulator/block.h"
#include "tests/emulator/epochs.h"
#include "tests/emulator/faults.h"

namespace emu {

char* memory_base;
GlobalCell* global_cells;
uint32_t* page_owners;
const Buffer* buffer_table;

namespace {

constexpr unsigned char canary = 0xA5;
/// Freed addresses are used again only after this much more was freed.
constexpr size_t quarantine_bytes = size_t{8} << 20;
/// Pages of larger buffers go back to the system when freed.
constexpr size_t worth_returning = size_t{1} << 20;

/// Which pages of a range are free.
class PageSpace {
 public:
  PageSpace(size_t first, size_t pages) { free_[first] = pages; }

  std::optional<size_t> take(size_t pages) {
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->second < pages) continue;
      const auto [first, available] = *it;
      free_.erase(it);
      if (available > pages) free_[first + pages] = available - pages;
      return first;
    }
    return std::nullopt;
  }

  void give(size_t first, size_t pages) {
    auto next = free_.lower_bound(first);
    if (next != free_.end() && first + pages == next->first) {
      pages += next->second;
      next = free_.erase(next);
    }
    if (next != free_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == first) {
        before->second += pages;
        return;
      }
    }
    free_[first] = pages;
  }

 private:
  std::map<size_t, size_t> free_;  ///< first page, number of pages
};

/// Buffers of one kind and where they lie.
struct Region {
  PageSpace space;
  std::deque<uint32_t> quarantine{};
  size_t quarantined = 0, used = 0;
};

struct Memory {
  Region device{PageSpace(0, device_space / page_bytes)};
  Region pinned{PageSpace(device_space / page_bytes, pinned_space / page_bytes)};
  std::vector<Buffer> buffers{Buffer{}};  ///< index 0 means none
  std::vector<uint32_t> unused_indices, without_canaries;
  size_t device_pages = 0;  ///< device memory ends here so far
  bool unlocked = false;
};

Memory& memory() {
  static auto& self = *new Memory;
  return self;
}

void* reserve(size_t bytes, int protection) {
  void* const range =
      mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) {
    std::perror("emulator: mmap");
    std::abort();
  }
  return range;
}

struct Reservation {
  Reservation() {
    constexpr size_t bytes = device_space + pinned_space;
    memory_base = static_cast<char*>(reserve(bytes, PROT_NONE));
    mprotect(memory_base + device_space, pinned_space, PROT_READ | PROT_WRITE);
    global_cells =
        static_cast<GlobalCell*>(reserve(bytes / 2 * sizeof(GlobalCell), PROT_READ | PROT_WRITE));
    page_owners = static_cast<uint32_t*>(
        reserve(bytes / page_bytes * sizeof(uint32_t), PROT_READ | PROT_WRITE));
  }
} const reservation;

size_t first_page(const Buffer& b) {
  return static_cast<size_t>(b.address - memory_base) / page_bytes;
}
/// Canary, buffer, canary; and the free page after them.
size_t pages_of(const Buffer& b) {
  return (b.bytes + 2 * canary_bytes + page_bytes - 1) / page_bytes + 1;
}

void write_canaries(const Buffer& b) {
  std::memset(b.address - canary_bytes, canary, canary_bytes);
  std::memset(b.address + b.bytes, canary, canary_bytes);
}

bool has_canaries(const Buffer& b) {
  const auto is_whole = [](const char* p) {
    return std::all_of(p, p + canary_bytes,
                       [](char c) { return static_cast<unsigned char>(c) == canary; });
  };
  return is_whole(b.address - canary_bytes) && is_whole(b.address + b.bytes);
}

/// Ends the quarantine of the buffer freed first.
void release_oldest(Region& region) {
  const uint32_t index = region.quarantine.front();
  region.quarantine.pop_front();
  const Buffer& b = memory().buffers[index];
  const size_t first = first_page(b), pages = pages_of(b);
  std::fill_n(page_owners + first, pages, 0U);
  region.space.give(first, pages);
  region.quarantined -= pages * page_bytes;
  memory().unused_indices.push_back(index);
}

void* allocate(Region& region, size_t bytes, bool pinned) {
  Buffer b{nullptr, bytes, next_epoch(), false, pinned};
  const size_t pages = pages_of(b);
  std::optional<size_t> first = region.space.take(pages);
  while (!first && !region.quarantine.empty()) {
    release_oldest(region);
    first = region.space.take(pages);
  }
  if (!first) return nullptr;
  // 256-byte aligned, as from cudaMalloc, and no more than that.
  b.address = memory_base + *first * page_bytes + canary_bytes;
  Memory& m = memory();
  uint32_t index = static_cast<uint32_t>(m.buffers.size());
  if (m.unused_indices.empty()) {
    m.buffers.push_back(b);
    buffer_table = m.buffers.data();
  } else {
    index = m.unused_indices.back();
    m.unused_indices.pop_back();
    m.buffers[index] = b;
  }
  std::fill_n(page_owners + *first, pages - 1, index);
  region.used += bytes;
  if (pinned) {
    write_canaries(b);
    std::memset(b.address, 0xff, bytes);
  } else {
    m.device_pages = std::max(m.device_pages, *first + pages);
    m.without_canaries.push_back(index);
    if (m.unlocked) unlock_device_memory();
  }
  return b.address;
}

void quarantine(Region& region, uint32_t index) {
  Memory& m = memory();
  Buffer& b = m.buffers[index];
  b.freed = true;
  region.used -= b.bytes;
  region.quarantine.push_back(index);
  region.quarantined += pages_of(b) * page_bytes;
  if (b.bytes >= worth_returning) {
    // Pages that the buffer has to itself.
    char* const begin = b.address - canary_bytes;
    madvise(begin, (pages_of(b) - 1) * page_bytes, MADV_DONTNEED);
    char* const cells = reinterpret_cast<char*>(global_cells + cell_index(begin));
    madvise(cells, (pages_of(b) - 1) * page_bytes / 2 * sizeof(GlobalCell), MADV_DONTNEED);
  }
  while (region.quarantined > quarantine_bytes) release_oldest(region);
}

void free_buffer(Region& region, void* address, bool pinned) {
  const char* const kind = pinned ? "pinned" : "device";
  const Buffer* const b = is_emulated(address) ? buffer_at(address) : nullptr;
  if (!b || b->address != address || b->pinned != pinned) {
    EMU_FAIL("{} is freed as a {} buffer, which it is not", describe(address), kind);
  }
  if (b->freed) EMU_FAIL("a {} buffer is freed twice: {}", kind, describe(address));
  if (!pinned) unlock_device_memory();
  const bool was_whole = has_canaries(*b);
  const size_t bytes = b->bytes;
  quarantine(region, page_owners[first_page(*b)]);
  if (!was_whole) {
    EMU_FAIL("the memory beside a {}-byte buffer was overwritten by code that is not instrumented",
             bytes);
  }
}

}  // namespace

size_t device_capacity() {
  const char* const limit = std::getenv("SUPRA_EMULATOR_MEMORY");
  const size_t mebibytes = limit ? std::strtoull(limit, nullptr, 10) : 4096;
  return std::min(mebibytes << 20, device_space / 2);
}

size_t device_used() {
  return memory().device.used;
}

void* allocate_device(size_t bytes) {
  if (bytes > device_capacity() - std::min(device_capacity(), device_used())) return nullptr;
  return allocate(memory().device, bytes, false);
}
void* allocate_pinned(size_t bytes) {
  return allocate(memory().pinned, bytes, true);
}
void free_device(void* address) {
  free_buffer(memory().device, address, false);
}
void free_pinned(void* address) {
  free_buffer(memory().pinned, address, true);
}

void forget_memory() {
  Memory& m = memory();
  for (uint32_t i = 1; i < m.buffers.size(); ++i) {
    Buffer& b = m.buffers[i];
    if (b.address && !b.freed) quarantine(b.pinned ? m.pinned : m.device, i);
  }
}

std::string live_buffers() {
  std::string text;
  for (const bool pinned : {false, true}) {
    int count = 0;
    size_t bytes = 0;
    for (const Buffer& b : memory().buffers) {
      if (!b.address || b.freed || b.pinned != pinned) continue;
      ++count;
      bytes += b.bytes;
    }
    if (count) {
      text += fmt::format("{}{} {} buffers ({} bytes)", text.empty() ? "" : ", ", count,
                          pinned ? "pinned" : "device", bytes);
    }
  }
  return text;
}

std::string describe(const void* p) {
  const auto* const address = static_cast<const char*>(p);
  if (is_emulated(p)) {
    // A page without owner belongs to the nearest buffer before it.
    const Buffer* b = buffer_at(p);
    if (!b && address >= memory_base + page_bytes) b = buffer_at(address - page_bytes);
    if (b) {
      return fmt::format("byte {:+d} of a {}-byte {} buffer{}", address - b->address, b->bytes,
                         b->pinned ? "pinned" : "device", b->freed ? " that was freed" : "");
    }
    return fmt::format("{} memory that was never allocated", is_device(p) ? "device" : "pinned");
  }
  if (const std::string shared = describe_shared(p); !shared.empty()) return shared;
  return fmt::format("host memory at {}", p);
}

void unlock_device_memory() {
  Memory& m = memory();
  mprotect(memory_base, m.device_pages * page_bytes, PROT_READ | PROT_WRITE);
  m.unlocked = true;
  for (const uint32_t index : m.without_canaries) {
    if (!m.buffers[index].freed) write_canaries(m.buffers[index]);
  }
  m.without_canaries.clear();
}

void lock_device_memory() {
  Memory& m = memory();
  if (!m.unlocked) return;
  mprotect(memory_base, m.device_pages * page_bytes, PROT_NONE);
  m.unlocked = false;
  install_fault_handler();
}

}  // namespace emu
