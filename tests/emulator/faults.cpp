#include "tests/emulator/faults.h"

#include <array>
#include <csignal>
#include <cstdio>
#include <vector>

#include "tests/emulator/block.h"
#include "tests/emulator/memory.h"

namespace emu {
namespace {

constexpr std::array signals = {SIGSEGV, SIGBUS};
std::array<struct sigaction, signals.size()> previous;

void restore_previous() {
  for (size_t i = 0; i < signals.size(); ++i) sigaction(signals[i], &previous[i], nullptr);
}

void on_fault(int, siginfo_t* info, void*) {
  if (current) {
    // Leaves the handler for good; SA_NODEFER keeps the signal open.
    EMU_FAIL("memory fault (perhaps the stack of the thread, of {} KiB, is full), {}",
             stack_bytes >> 10, describe(info->si_addr));
  }
  if (is_device(info->si_addr)) {
    const std::string text =
        fmt::format("emulator: host code touched device memory, {}\n", describe(info->si_addr));
    std::fputs(text.c_str(), stderr);
  }
  // The access is tried again, and meets the next handler.
  restore_previous();
}

}  // namespace

void install_fault_handler() {
  struct sigaction ours {};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (size_t i = 0; i < signals.size(); ++i) {
    struct sigaction before {};
    sigaction(signals[i], &ours, &before);
    if (before.sa_sigaction != on_fault) previous[i] = before;
  }
}

void handle_faults_of_this_thread() {
  thread_local bool done = false;
  if (done) return;
  done = true;
  stack_t existing{};
  sigaltstack(nullptr, &existing);
  if (!(existing.ss_flags & SS_DISABLE)) return;
  constexpr size_t bytes = size_t{64} << 10;
  thread_local std::vector<char> memory(bytes);
  stack_t stack{};
  stack.ss_sp = memory.data();
  stack.ss_size = bytes;
  sigaltstack(&stack, nullptr);
}

}  // namespace emu
