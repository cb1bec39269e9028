#pragma once
// What the executable says about itself: names of kernels, thread-local (static shared) arrays,
// source lines, launch bounds.

#include <cstddef>
#include <cstdint>
#include <string>

namespace emu {

/// A thread-local object of the executable, `offset` bytes into the thread-local block.
struct ThreadLocalObject {
  size_t offset, bytes;
  std::string symbol;
};
/// As the source calls it.
std::string array_name(const ThreadLocalObject& object);

/// "supra::cuda::rms_norm<float>": qualified, with template arguments, without parameters.
std::string kernel_name(const void* kernel);
/// The threads of __launch_bounds__; 0 where the kernel has none.
unsigned launch_bound(const void* kernel);
/// The bytes of the static shared arrays declared in the kernel itself.
size_t static_shared_bytes(const void* kernel);
/// The thread-local object that contains this offset, or null.
const ThreadLocalObject* thread_local_at(size_t offset);
/// The calling thread's copy of the executable's thread-local block.
char* thread_local_block();
size_t thread_local_bytes();
/// Whether the address lies in the executable's own image: code and constants.
bool is_in_image(const void* address);

/// A code address as a small number, and back as "norm.cu:40"; with functions inlined at the
/// address, as "vector.cuh:53, inlined in norm.cu:40". 0 has no place.
uint32_t code_offset(const void* pc);
std::string source_line(uint32_t code_offset);

}  // namespace emu
