#pragma once
// The communicator of the CUDA device: NCCL on two streams of its own, one that gathers and one
// that reduces, so that both go on beside the ops. Host data travel by MPI.

#include <memory>

#include "parallel/communication/communicator.h"
#include "runtime/device.h"

namespace supra {

/// Over all ranks, each on a GPU of its own. `device`, a CUDA device, and the MPI session must
/// outlive it. The device's waits, and those for host data, watch over its collectives. Bad input
/// where the program was built without CUDA.
std::unique_ptr<Communicator> make_nccl_communicator(Device& device);

}  // namespace supra
