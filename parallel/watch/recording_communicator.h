#pragma once
// A communicator that records its calls on the way to another, the one that makes them.

#include <memory>
#include <optional>
#include <string>

#include "parallel/communication/communicator.h"
#include "parallel/watch/fault.h"
#include "parallel/watch/flight_recorder.h"

namespace supra {

/// Under this name in `recorder`, which outlives it. With `check`, all ranks compare each call
/// before they make it: where they differ, every rank throws the same AgreedError. `fault` is this
/// rank's, and emptied when it has happened.
std::unique_ptr<Communicator> make_recording_communicator(std::unique_ptr<Communicator> inner,
                                                          std::string name,
                                                          FlightRecorder& recorder, bool check,
                                                          std::optional<Fault>& fault);

}  // namespace supra
