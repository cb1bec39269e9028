#include "tests/emulator/capture.h"

#include <algorithm>

struct EmuGraph {
  std::shared_ptr<const emu::GraphSteps> steps;
};

struct EmuGraphExec {
  std::shared_ptr<const emu::GraphSteps> steps;
  std::vector<EmuStream*> streams;  ///< of the lanes after the first
};

namespace emu {
namespace {

struct Graphs {
  std::vector<std::weak_ptr<Capture>> captures;
  std::vector<std::unique_ptr<EmuGraph>> graphs;
  std::vector<std::unique_ptr<EmuGraphExec>> execs;
};
Graphs& graphs() {
  static auto& self = *new Graphs;
  return self;
}

template <class T>
T& checked_handle(const std::vector<std::unique_ptr<T>>& all, T* handle, const char* what) {
  if (std::ranges::find(all, handle, &std::unique_ptr<T>::get) == all.end()) {
    throw Failure{cudaErrorInvalidResourceHandle,
                  fmt::format("a {} is used that does not exist, or not any more", what)};
  }
  return *handle;
}

[[noreturn]] void spoil(Capture& capture, cudaError_t status, const std::string& why) {
  if (capture.broken.empty()) capture.broken = why;
  throw Failure{status, why};
}

/// Another stream takes part from now on.
void join_capture(EmuStream& stream, const std::shared_ptr<Capture>& capture) {
  stream.capture = capture;
  stream.capture_lane = capture->streams.size();
  capture->streams.push_back(&stream);
  capture->clocks.emplace_back();
  capture->graph->lanes = capture->streams.size();
}

CapturedStep& add_step(EmuStream& stream, Operation operation) {
  Capture& capture = *stream.capture;
  Clock& clock = capture.clocks[stream.capture_lane];
  if (clock.size() <= stream.capture_lane) clock.resize(stream.capture_lane + 1);
  ++clock[stream.capture_lane];
  return capture.graph->steps.emplace_back(CapturedStep{stream.capture_lane, std::move(operation)});
}

void check_joined(Capture& capture) {
  for (size_t lane = 1; lane < capture.streams.size(); ++lane) {
    const Clock& clock = capture.clocks[lane];
    const uint32_t steps = lane < clock.size() ? clock[lane] : 0;
    if (!covers(capture.clocks[0], lane, steps)) {
      spoil(
          capture, cudaErrorStreamCaptureUnjoined,
          fmt::format("stream {} took part in the capture and the origin does not wait for its end",
                      capture.streams[lane]->number));
    }
  }
}

void launch(const EmuGraphExec& exec, EmuStream& origin) {
  std::vector<std::shared_ptr<Mark>> marks(exec.steps->marks);
  for (const CapturedStep& step : exec.steps->steps) {
    EmuStream* const stream = step.lane == 0 ? &origin : exec.streams[step.lane - 1];
    Operation operation = step.operation;
    if (operation.kind == Operation::Kind::record) {
      operation.mark = marks[step.mark] = std::make_shared<Mark>();
    } else if (operation.kind == Operation::Kind::wait) {
      operation.mark = marks[step.mark];
    }
    enqueue(stream, std::move(operation));
  }
}

}  // namespace

void capture_operation(EmuStream& stream, Operation operation) {
  add_step(stream, std::move(operation));
}

void record_event(EmuEvent& event, EmuStream& stream) {
  if (!stream.capture) {
    event.capture.reset();
    event.mark = std::make_shared<Mark>();
    enqueue(&stream, {.kind = Operation::Kind::record, .name = "event", .mark = event.mark});
    return;
  }
  Capture& capture = *stream.capture;
  event.capture = stream.capture;
  event.captured_mark = capture.graph->marks++;
  add_step(stream, {.kind = Operation::Kind::record, .name = "event"}).mark = event.captured_mark;
  capture.marks.push_back(capture.clocks[stream.capture_lane]);
}

void wait_for_event(EmuStream& stream, EmuEvent& event) {
  const std::shared_ptr<Capture> capture = event.capture;
  if (!capture) {
    if (stream.capture && event.mark) {
      spoil(*stream.capture, cudaErrorStreamCaptureIsolation,
            "a stream that is captured waits for an event recorded outside of the capture");
    }
    // An event that was never recorded is complete.
    if (!event.mark) return;
    enqueue(&stream, {.kind = Operation::Kind::wait, .name = "event wait", .mark = event.mark});
    return;
  }
  if (capture->streams.empty()) {
    throw Failure{cudaErrorInvalidValue,
                  "a stream waits for an event last recorded in a capture that has ended"};
  }
  if (!stream.capture) join_capture(stream, capture);
  if (stream.capture != capture) {
    spoil(*stream.capture, cudaErrorStreamCaptureIsolation,
          "a stream that is captured waits for an event of another capture");
  }
  join(capture->clocks[stream.capture_lane], capture->marks[event.captured_mark]);
  add_step(stream, {.kind = Operation::Kind::wait, .name = "event wait"}).mark =
      event.captured_mark;
}

void refuse_in_capture(const EmuStream& stream) {
  if (stream.capture) {
    spoil(*stream.capture, cudaErrorStreamCaptureUnsupported,
          fmt::format("stream {} is waited for while it is captured", stream.number));
  }
}

void refuse_captured(const EmuEvent& event) {
  if (event.capture && !event.capture->streams.empty()) {
    spoil(*event.capture, cudaErrorStreamCaptureUnsupported,
          "the host waits for an event that was recorded in a capture");
  }
}

void refuse_in_any_capture(const char* what, bool also_relaxed) {
  for (const auto& weak : graphs().captures) {
    const auto capture = weak.lock();
    if (!capture || capture->streams.empty()) continue;
    if (also_relaxed || capture->mode != cudaStreamCaptureModeRelaxed) {
      spoil(*capture, cudaErrorStreamCaptureUnsupported,
            fmt::format("{} while a stream is captured", what));
    }
  }
}

void forget_graphs() {
  graphs().captures.clear();
  graphs().graphs.clear();
  graphs().execs.clear();
}

std::string live_graphs() {
  const size_t count = graphs().graphs.size(), execs = graphs().execs.size();
  std::string text;
  if (count) text += fmt::format("{} graphs", count);
  if (execs) text += fmt::format("{}{} instantiated graphs", count ? ", " : "", execs);
  return text;
}

}  // namespace emu

using emu::ApiCall;
using emu::Failure;

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return ApiCall::run([&] {
    EmuStream& stream = emu::checked(handle);
    if (stream.capture) {
      emu::spoil(*stream.capture, cudaErrorStreamCaptureUnsupported,
                 "a capture is begun on a stream that is captured already");
    }
    const auto capture = std::make_shared<emu::Capture>();
    capture->mode = mode;
    capture->graph = std::make_shared<emu::GraphSteps>();
    emu::join_capture(stream, capture);
    std::erase_if(emu::graphs().captures, [](const auto& weak) { return weak.expired(); });
    emu::graphs().captures.push_back(capture);
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return ApiCall::run([&] {
    *graph = nullptr;
    EmuStream& stream = emu::checked(handle);
    const auto capture = stream.capture;
    if (!capture || capture->streams[0] != &stream) {
      throw Failure{cudaErrorStreamCaptureUnmatched,
                    "a capture is ended on a stream on which none was begun"};
    }
    struct End {
      emu::Capture& capture;
      ~End() {
        for (EmuStream* s : capture.streams) s->capture.reset();
        capture.streams.clear();
      }
    } const end{*capture};
    if (!capture->broken.empty()) {
      throw Failure{cudaErrorStreamCaptureInvalidated,
                    "the capture was spoiled: " + capture->broken};
    }
    emu::check_joined(*capture);
    *graph = emu::graphs().graphs.emplace_back(new EmuGraph{capture->graph}).get();
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return ApiCall::run([&] {
    const EmuStream& stream = emu::checked(handle);
    *status = !stream.capture                  ? cudaStreamCaptureStatusNone
              : stream.capture->broken.empty() ? cudaStreamCaptureStatusActive
                                               : cudaStreamCaptureStatusInvalidated;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return ApiCall::run([&] {
    const EmuGraph& source = emu::checked_handle(emu::graphs().graphs, graph, "graph");
    auto made = std::make_unique<EmuGraphExec>();
    made->steps = source.steps;
    for (size_t lane = 1; lane < source.steps->lanes; ++lane) {
      made->streams.push_back(emu::create_stream());
      made->streams.back()->of_graph = true;
    }
    *exec = emu::graphs().execs.emplace_back(std::move(made)).get();
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return ApiCall::run([&] {
    EmuStream& origin = emu::checked(stream);
    const EmuGraphExec& graph =
        emu::checked_handle(emu::graphs().execs, exec, "instantiated graph");
    if (origin.capture) {
      emu::spoil(*origin.capture, cudaErrorStreamCaptureUnsupported,
                 "a graph is launched into a capture, which the emulator does not offer");
    }
    emu::launch(graph, origin);
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return ApiCall::run([&] {
    emu::checked_handle(emu::graphs().graphs, graph, "graph");
    std::erase_if(emu::graphs().graphs, [&](const auto& g) { return g.get() == graph; });
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return ApiCall::run([&] {
    const auto& found = emu::checked_handle(emu::graphs().execs, exec, "instantiated graph");
    for (EmuStream* stream : found.streams) emu::destroy_stream(stream);
    std::erase_if(emu::graphs().execs, [&](const auto& e) { return e.get() == exec; });
  });
}
