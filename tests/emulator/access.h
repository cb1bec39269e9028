#pragma once
// Checks of every access to memory that the program under test makes on the device.

#include <cstddef>
#include <cstdint>

namespace emu {

/// Device or pinned memory, by the running thread or operation: fails if it is out of bounds, of a
/// freed buffer, or unordered with another block's, thread's or operation's.
void access_global(const char* p, size_t bytes, bool is_write, uint32_t code);

/// Memory of any kind, by the running thread, from the code at `pc`.
void access_memory(const void* p, size_t bytes, bool is_write, const void* pc);

}  // namespace emu
