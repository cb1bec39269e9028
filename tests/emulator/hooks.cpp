// The functions that -fsanitize=thread and -fsanitize=alignment,bounds make the compiler call in
// kernel files. The sanitizers' own libraries are not linked: these are the emulator's checks of
// every load and store.

#include "tests/emulator/access.h"
#include "tests/emulator/block.h"
#include "tests/emulator/memory.h"
#include "tests/emulator/shared_memory.h"
#include "tests/emulator/symbols.h"

namespace emu {
namespace {

/// Whether the address lies on the stack of the calling fiber: its locals, most accesses of all.
inline __attribute__((always_inline)) bool is_local(const void* p) {
  return (reinterpret_cast<uintptr_t>(p) ^
          reinterpret_cast<uintptr_t>(__builtin_frame_address(0))) < stack_bytes;
}

bool is_argument(const char* p, size_t bytes) {
  const auto* const begin = static_cast<const char*>(block.arguments);
  return p >= begin && p + bytes <= begin + block.argument_bytes;
}

template <size_t bytes>
inline __attribute__((always_inline)) void aligned_access(const void* p, bool is_write,
                                                          const void* pc) {
  if (is_local(p) || !current || !block.checking) return;
  if (reinterpret_cast<uintptr_t>(p) % bytes) {
    EMU_FAIL("misaligned: {}-byte {} at {}, {}", bytes, is_write ? "write" : "read",
             source_line(code_offset(pc)), describe(p));
  }
  access_memory(p, bytes, is_write, pc);
}

[[noreturn]] void report_host_access(const void* p, size_t bytes, bool is_write, const void* pc) {
  EMU_FAIL("{}-byte {} at {} of memory that is not the device's, {}", bytes,
           is_write ? "write" : "read", source_line(code_offset(pc)), describe(p));
}

}  // namespace

void access_memory(const void* address, size_t bytes, bool is_write, const void* pc) {
  if (is_local(address) || !current || !block.checking) return;
  const auto* const p = static_cast<const char*>(address);
  if (is_device(p)) {
    access_global(p, bytes, is_write, code_offset(pc));
  } else if (is_shared(p)) {
    access_shared(p, bytes, is_write, code_offset(pc));
  } else if (is_write || (!is_argument(p, bytes) && !is_in_image(p))) {
    report_host_access(p, bytes, is_write, pc);
  }
}

}  // namespace emu

namespace {

/// Where the source says that a check of -fsanitize=alignment,bounds failed.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

std::string to_string(const SourceLocation& where) {
  const std::string_view path = where.file;
  return fmt::format("{}:{}", path.substr(path.rfind('/') + 1), where.line);
}

}  // namespace

// NOLINTBEGIN(readability-identifier-naming, bugprone-reserved-identifier): the compiler's names
extern "C" {

#define EMU_ACCESS_HOOKS(bytes)                                        \
  void __tsan_read##bytes(void* p) {                                   \
    emu::aligned_access<bytes>(p, false, __builtin_return_address(0)); \
  }                                                                    \
  void __tsan_write##bytes(void* p) {                                  \
    emu::aligned_access<bytes>(p, true, __builtin_return_address(0));  \
  }                                                                    \
  void __tsan_volatile_read##bytes(void* p) {                          \
    emu::aligned_access<bytes>(p, false, __builtin_return_address(0)); \
  }                                                                    \
  void __tsan_volatile_write##bytes(void* p) {                         \
    emu::aligned_access<bytes>(p, true, __builtin_return_address(0));  \
  }                                                                    \
  void __tsan_unaligned_read##bytes(void* p) {                         \
    emu::access_memory(p, bytes, false, __builtin_return_address(0));  \
  }                                                                    \
  void __tsan_unaligned_write##bytes(void* p) {                        \
    emu::access_memory(p, bytes, true, __builtin_return_address(0));   \
  }
EMU_ACCESS_HOOKS(1)
EMU_ACCESS_HOOKS(2)
EMU_ACCESS_HOOKS(4)
EMU_ACCESS_HOOKS(8)
EMU_ACCESS_HOOKS(16)
#undef EMU_ACCESS_HOOKS

void __tsan_read_range(void* p, size_t bytes) {
  emu::access_memory(p, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  emu::access_memory(p, bytes, true, __builtin_return_address(0));
}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

void __ubsan_handle_type_mismatch_v1(const void* data, uintptr_t address) {
  if (!emu::current || !emu::block.checking) return;
  EMU_FAIL("misaligned access at {}, {}", to_string(*static_cast<const SourceLocation*>(data)),
           emu::describe(reinterpret_cast<const void*>(address)));
}
void __ubsan_handle_out_of_bounds(const void* data, uintptr_t index) {
  if (!emu::current || !emu::block.checking) return;
  EMU_FAIL("index {} at {} is outside of its array", static_cast<intptr_t>(index),
           to_string(*static_cast<const SourceLocation*>(data)));
}

// Atomic operations appear in host code of kernel files (reference counts); kernels use none.
#define EMU_ATOMIC_HOOKS(bits)                                                                     \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* p, int) {               \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t* p, uint##bits##_t v, int) {            \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t* p, uint##bits##_t v,      \
                                                int) {                                             \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                \
  uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile uint##bits##_t* p, uint##bits##_t v,     \
                                                 int) {                                            \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  uint##bits##_t __tsan_atomic##bits##_fetch_sub(volatile uint##bits##_t* p, uint##bits##_t v,     \
                                                 int) {                                            \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  bool __tsan_atomic##bits##_compare_exchange_strong(                                              \
      volatile uint##bits##_t* p, uint##bits##_t* expected, uint##bits##_t v, int, int) {          \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
  }                                                                                                \
  bool __tsan_atomic##bits##_compare_exchange_weak(                                                \
      volatile uint##bits##_t* p, uint##bits##_t* expected, uint##bits##_t v, int, int) {          \
    return __atomic_compare_exchange_n(p, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);  \
  }
EMU_ATOMIC_HOOKS(8)
EMU_ATOMIC_HOOKS(16)
EMU_ATOMIC_HOOKS(32)
EMU_ATOMIC_HOOKS(64)
#undef EMU_ATOMIC_HOOKS

}  // extern "C"
// NOLINTEND(readability-identifier-naming, bugprone-reserved-identifier)
