// cp.async: a copy lands as late as the ISA allows, when its thread waits for its group. Until then
// every access to the target fails, and the target reads NaN. Afterwards it counts as written by
// the thread that waited: others need a barrier.

#include <cstring>

#include "tests/emulator/access.h"
#include "tests/emulator/block.h"
#include "tests/emulator/memory.h"
#include "tests/emulator/shared_memory.h"
#include "tests/emulator/symbols.h"

namespace emu {
namespace {

void land(const AsyncCopy& copy) {
  end_async_write(copy.to, 16);
  access_shared(copy.to, 16, true, copy.code);
  std::memcpy(copy.to, copy.from, copy.valid);
  std::memset(copy.to + copy.valid, 0, 16 - copy.valid);
}

}  // namespace

void copy_async(uint32_t to, const void* from, unsigned valid, Loc where) {
  const uint32_t code = code_offset(__builtin_return_address(0));
  char* const target = shared_pointer(to, "cp.async");
  const auto* const source = static_cast<const char*>(from);
  if (valid > 16) EMU_FAIL("cp.async at {}: {} of 16 bytes are valid", to_string(where), valid);
  if (valid) {
    if (reinterpret_cast<uintptr_t>(from) % 16) {
      EMU_FAIL("cp.async at {}: misaligned, {} is not at a multiple of 16 bytes", to_string(where),
               describe(from));
    }
    if (!is_device(source)) {
      EMU_FAIL("cp.async at {} from {}", to_string(where), describe(from));
    }
    access_global(source, valid, false, code);
  }
  access_shared(target, 16, true, code);
  std::memset(target, 0xff, 16);
  begin_async_write(target, 16);
  current->copies.push_back({target, source, valid, current->copy_group, where, code});
}

void commit_copies() {
  ++current->copy_group;
}

void wait_for_copies(unsigned pending) {
  // A group is complete when at most `pending` younger ones were committed after it.
  Thread& t = *current;
  std::erase_if(t.copies, [&](const AsyncCopy& copy) {
    if (copy.group + pending >= t.copy_group) return false;
    land(copy);
    return true;
  });
}

}  // namespace emu
