#include "tests/emulator/errors.h"

namespace emu {

std::string to_string(const Loc& where) {
  const std::string_view path = where.file_name();
  return fmt::format("{}:{}", path.substr(path.rfind('/') + 1), where.line());
}

ErrorState& error_state() {
  static auto& state = *new ErrorState;  // outlives every static object that may still call
  return state;
}

cudaError_t ErrorState::set(const Failure& failure) {
  if (sticky_) return last_;
  last_ = failure.status;
  sticky_ = failure.sticky;
  message_ = failure.message;
  read_ = false;
  return last_;
}

cudaError_t ErrorState::set_expected(cudaError_t status) {
  if (!sticky_) last_ = status;
  return status;
}

void ErrorState::clear_unless_sticky() {
  read_ = true;
  if (!sticky_) last_ = cudaSuccess;
}

void ErrorState::clear() {
  *this = ErrorState();
}

const char* ErrorState::text(cudaError_t status) {
  if (status == cudaSuccess) return "no error";
  if (status == cudaErrorMemoryAllocation) return "out of memory";
  if (status == cudaErrorNotReady) return "device not ready";
  if (status == cudaErrorNoDevice) return "no CUDA-capable device is detected";
  read_ = true;
  return message_.empty() ? cudaGetErrorName(status) : message_.c_str();
}

}  // namespace emu

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidMemcpyDirection:
      return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnmatched:
      return "cudaErrorStreamCaptureUnmatched";
    case cudaErrorStreamCaptureUnjoined:
      return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorStreamCaptureIsolation:
      return "cudaErrorStreamCaptureIsolation";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t status) {
  return emu::error_state().text(status);
}

cudaError_t cudaPeekAtLastError() {
  return emu::error_state().last();
}

cudaError_t cudaGetLastError() {
  const cudaError_t status = emu::error_state().last();
  emu::error_state().clear_unless_sticky();
  return status;
}
