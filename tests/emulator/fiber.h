#pragma once
// Stackful contexts: the threads of a block are fibers of one host thread. On x86-64 a switch is
// ten instructions; elsewhere it is ucontext's, which also saves the signal mask and is ten times
// slower.

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

/// A fiber's stack lies at a multiple of this, its size.
inline constexpr size_t stack_bytes = size_t{64} << 10;

struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
};

/// Saves the running context and goes on with another.
void switch_context(Context& from, Context& to);
/// Makes `context` begin with `entry`, which must never return, on a stack that ends at `top`.
void prepare_context(Context& context, char* stack, char* top, void (*entry)());

}  // namespace emu
