#pragma once
// What a watched run leaves in its run folder.

#include <string>

#include "parallel/watch/flight_recorder.h"

namespace supra {

/// RUN/watch/rank-0003.json, written aside and renamed. Its format: docs/watchdog.md.
void write_record(const std::string& run_folder, int rank, int ranks, const std::string& host,
                  const FlightRecord& record);

}  // namespace supra
