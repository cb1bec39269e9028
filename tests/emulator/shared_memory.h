#pragma once
// Shared memory of the running block. Dynamic shared memory ends at an inaccessible page; static
// arrays lie in the thread-local block of the executable. Addresses of 32 bits, as instructions
// take them, count from a place of their own for each.

#include <cstddef>
#include <cstdint>

namespace emu {

/// Sets block.shared for the next launch.
void place_dynamic_shared(size_t bytes);
bool is_shared(const void* p);

/// The memory of a 32-bit shared address at which `instruction` touches 16 bytes; fails if they
/// are not all inside, or not aligned.
char* shared_pointer(uint32_t address, const char* instruction);

/// An access by the running thread: fails if it is out of bounds, or unordered with another
/// thread's, or to bytes that a cp.async is still to write.
void access_shared(const char* p, size_t bytes, bool is_write, uint32_t code);
/// Between these two, any access to the bytes fails.
void begin_async_write(const char* p, size_t bytes);
void end_async_write(const char* p, size_t bytes);

}  // namespace emu
