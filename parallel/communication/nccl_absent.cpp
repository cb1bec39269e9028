// Stands in for nccl_communicator.cpp where the program is built without CUDA.

#include "parallel/communication/nccl_communicator.h"

namespace supra {

std::unique_ptr<Communicator> make_nccl_communicator(Device&) {
  fail_input("this program was built without CUDA, and so without NCCL");
}

}  // namespace supra
