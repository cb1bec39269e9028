#pragma once
// How a mistake reaches the program: the code that finds it calls EMU_FAIL, the running operation
// ends, and the CUDA calls from then on return the error, with the message as their error string.

#include <cstring>
#include <source_location>
#include <string>

#include <cuda_runtime.h>
#include <fmt/format.h>

namespace emu {

/// A mistake on its way to the CUDA call that returns it. `sticky`: as after a fault of a kernel,
/// every later call fails too.
struct Failure {
  cudaError_t status;
  std::string message;
  bool sticky = false;
};

/// Ends the running thread block, or throws Failure where none runs.
[[noreturn]] void fail_now(const std::string& message);
/// From now on the running block's accesses go unchecked: what composes a message is a part of the
/// program, too, and may have been compiled like a kernel.
void stop_checking();
#define EMU_FAIL(...) (::emu::stop_checking(), ::emu::fail_now(fmt::format(__VA_ARGS__)))

/// "norm.cu:40"
std::string to_string(const Loc& where);
inline bool is_same_place(const Loc& a, const Loc& b) {
  return a.line() == b.line() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

/// The error that the next calls return.
class ErrorState {
 public:
  /// The first sticky one stays. Returns the status that the failing call returns.
  cudaError_t set(const Failure& failure);
  /// An error that programs expect and handle, such as a full memory.
  cudaError_t set_expected(cudaError_t status);
  cudaError_t sticky() const { return sticky_ ? last_ : cudaSuccess; }
  cudaError_t last() const { return last_; }
  void clear_unless_sticky();
  void clear();
  const char* text(cudaError_t status);
  /// A message that no call has handed to the program; empty otherwise.
  std::string unread() const { return read_ ? std::string() : message_; }

 private:
  cudaError_t last_ = cudaSuccess;
  bool sticky_ = false, read_ = true;
  std::string message_;
};
ErrorState& error_state();

}  // namespace emu
