#pragma once
// Memory faults: host code that touches device memory, and kernels' own that no check foresaw.

namespace emu {

/// Puts the emulator's handler before whatever handles faults now (test frameworks install theirs
/// late).
void install_fault_handler();
/// Gives the calling thread a stack for the handler: a fiber's may have overflown.
void handle_faults_of_this_thread();

}  // namespace emu
