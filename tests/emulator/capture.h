#pragma once
// Stream capture and graphs. A graph is the list of what was enqueued, recorded and waited for
// while its streams were captured; a launch does the same again: the origin's part on the stream of
// the launch, every other captured stream's part on a stream of the graph's own.

#include <memory>
#include <string>
#include <vector>

#include "tests/emulator/stream_engine.h"

namespace emu {

struct CapturedStep {
  size_t lane;  ///< which of the captured streams, in the order in which they joined
  Operation operation;
  size_t mark = 0;  ///< which record of the graph this is, or waits for
};

struct GraphSteps {
  std::vector<CapturedStep> steps;
  size_t lanes = 1, marks = 0;
};

/// A capture under way.
struct Capture {
  cudaStreamCaptureMode mode;
  std::vector<EmuStream*> streams;  ///< by lane, the origin first
  std::vector<Clock> clocks;        ///< of each lane, in steps of all lanes
  std::vector<Clock> marks;         ///< clocks of the records
  std::shared_ptr<GraphSteps> graph;
  std::string broken;  ///< why there will be no graph; empty while all is well
};

/// Adds an operation to the graph that the stream captures.
void capture_operation(EmuStream& stream, Operation operation);
void record_event(EmuEvent& event, EmuStream& stream);
/// May draw the stream into the capture in which the event was recorded.
void wait_for_event(EmuStream& stream, EmuEvent& event);

/// Fails, and spoils the capture, as CUDA does: waiting for a stream that captures; anything that
/// may wait for the device, unless all captures are relaxed.
void refuse_in_capture(const EmuStream& stream);
void refuse_in_any_capture(const char* what, bool also_relaxed = true);
void refuse_captured(const EmuEvent& event);

void forget_graphs();
std::string live_graphs();

}  // namespace emu
