// The end: what the program did not give back, and starting over for tests.

#include <cstdio>
#include <cstdlib>
#include <unistd.h>

#include "tests/emulator/capture.h"
#include "tests/emulator/emulator.h"
#include "tests/emulator/memory.h"
#include "tests/emulator/pinned_copies.h"
#include "tests/emulator/stream_engine.h"

namespace emu {
namespace {

void report_at_exit(int status, void* owner) {
  // A child that a test forked reports nothing of its parent's.
  if (owner != reinterpret_cast<void*>(static_cast<intptr_t>(getpid()))) return;
  const std::string report = leak_report();
  if (report.empty()) return;
  std::fprintf(stderr, "emulator: at exit\n%s", report.c_str());
  if (status != 0) return;
  std::fflush(nullptr);
  _exit(leak_exit_code);
}

// Registered before any object with a destructor that frees device memory is made: runs after it.
__attribute__((constructor(101))) void register_report() {
  on_exit(report_at_exit, reinterpret_cast<void*>(static_cast<intptr_t>(getpid())));
}

}  // namespace

std::string leak_report() {
  std::string report;
  const auto add = [&](const char* what, const std::string& text) {
    if (!text.empty()) report += fmt::format("  {}: {}\n", what, text);
  };
  add("an error that no call returned", error_state().unread());
  add("memory not freed", live_buffers());
  add("streams not destroyed", live_streams());
  add("events not destroyed", live_events());
  add("graphs not destroyed", live_graphs());
  return report;
}

void reset() {
  const ApiCall guard;
  forget_graphs();
  forget_streams();
  forget_events();
  forget_pinned_copies();
  forget_memory();
  error_state().clear();
}

}  // namespace emu
