#pragma once
// What a training step needs of the machine before it can be built: the same for a run and for
// measuring one.

#include <memory>

#include "launch/recipe/recipe.h"
#include "parallel/communication/mpi_communicator.h"
#include "parallel/engine.h"

namespace supra {

/// The device that a rank trains on: the GPU of its number on its host, or the CPU with
/// `run.threads` threads, by default its share of the host's cores.
std::unique_ptr<Device> make_training_device(const Recipe& recipe, const MpiSession& session);

/// Bad input, with a table of what is needed, unless a rank's share of the device has room for the
/// arena of `plan` and `beside` it.
void require_memory(const Recipe& recipe, const MpiSession& session, const Device& device,
                    const MemoryPlan& plan, size_t beside);

/// The largest resident size this process had, bytes.
size_t peak_memory();

}  // namespace supra
