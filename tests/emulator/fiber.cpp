#include "tests/emulator/fiber.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)

extern "C" void emu_switch_stack(void** from, void* to);
// The registers that a function must preserve, and the stack pointer.
asm(R"(
.text
.globl emu_switch_stack
.type emu_switch_stack, @function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stack, .-emu_switch_stack
)");

namespace emu {

void switch_context(Context& from, Context& to) {
  emu_switch_stack(&from.stack_pointer, to.stack_pointer);
}

void prepare_context(Context& context, char*, char* top, void (*entry)()) {
  // What emu_switch_stack pops: six registers, then the address to return to. The stack is then as
  // after a call: 8 bytes past a multiple of 16.
  auto** slot = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - 8);
  *slot = nullptr;
  *--slot = reinterpret_cast<void*>(entry);
  slot -= 6;
  std::memset(slot, 0, 6 * sizeof(void*));
  context.stack_pointer = slot;
}

}  // namespace emu

#else

namespace emu {

void switch_context(Context& from, Context& to) {
  swapcontext(&from.registers, &to.registers);
}

void prepare_context(Context& context, char* stack, char* top, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = static_cast<size_t>(top - stack);
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

}  // namespace emu

#endif
