// Streams, events, graphs and external operations of the emulator.

#include <cmath>
#include <cstring>

#include "tests/cuda/device_array.h"
#include "tests/emulated/emulator_fixture.h"
#include "tests/emulated/emulator_kernels.h"
#include "tests/emulator/streams.h"

using namespace supra;
using namespace supra::test;
using cuda::check_cuda;
using cuda::Event;
using cuda::Stream;

namespace {

constexpr int n = 64;
constexpr size_t bytes = n * sizeof(float);

/// Notes that it ran.
void enqueue_note(const Stream& stream, std::string& log, char name) {
  check_cuda(emu::enqueue_host_op(stream.get(), "note", {}, {}, [&log, name] { log += name; }),
             "enqueue_host_op");
}

void synchronize_all() {
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

/// An operation of which two take part: complete when the partner has started, too.
void enqueue_exchange(const Stream& stream, bool& mine, const bool& other) {
  check_cuda(
      emu::enqueue_external(
          stream.get(), "exchange", {}, {}, [&mine] { mine = true; }, [&other] { return other; }),
      "enqueue_external");
}

struct Graph {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;

  ~Graph() {
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
  }
  void end(const Stream& stream) {
    check_cuda(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
  }
  void launch(const Stream& stream) {
    if (!exec) check_cuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    check_cuda(cudaGraphLaunch(exec, stream.get()), "cudaGraphLaunch");
  }
};

void begin_capture(const Stream& stream,
                   cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
  check_cuda(cudaStreamBeginCapture(stream.get(), mode), "cudaStreamBeginCapture");
}

}  // namespace

TEST_CASE("emulator: streams run lazily, at random or eagerly, as the seed says") {
  for (uint64_t seed = 0; seed < 3; ++seed) {
    emu::reset();
    emu::set_seed(seed);
    const Stream a, b;
    std::string log;
    for (int i = 0; i < 8; ++i) {
      enqueue_note(a, log, 'a');
      enqueue_note(b, log, 'b');
    }
    if (seed == 0) CHECK(log.empty());
    if (seed == 2) CHECK(log == "abababababababab");
    b.synchronize();
    if (seed == 0) CHECK(log == "bbbbbbbb");
    a.synchronize();
    CHECK(log.size() == 16);
  }
}

TEST_CASE("emulator: an event holds a stream back under every seed") {
  for_each_seed([] {
    const Stream a, b;
    Event event;
    std::string log;
    for (char c = 'a'; c < 'f'; ++c) enqueue_note(a, log, c);
    event.record(a.get());
    event.hold_back(b.get());
    enqueue_note(b, log, 'X');
    b.synchronize();
    CHECK(log == "abcdeX");
  });
}

TEST_CASE("emulator: a query is not ready until the work is done, and some day it is") {
  for_each_seed([] {
    const Stream stream;
    Event event;
    std::string log;
    for (int i = 0; i < 5; ++i) enqueue_note(stream, log, 'x');
    cudaEvent_t last = nullptr;
    check_cuda(cudaEventCreate(&last), "cudaEventCreate");
    check_cuda(cudaEventRecord(last, stream.get()), "cudaEventRecord");
    while (cudaEventQuery(last) == cudaErrorNotReady) CHECK(log.size() <= 5);
    CHECK(log.size() == 5);
    CHECK(cudaStreamQuery(stream.get()) == cudaSuccess);
    check_cuda(cudaEventDestroy(last), "cudaEventDestroy");
  });
}

TEST_CASE("emulator: every reader counts, not only the last") {
  // Two streams read, a third writes having waited for one of them.
  for (const bool waits_for_both : {true, false}) {
    for_each_seed([&] {
      const std::string error = error_of([&] {
        const Stream first, second, writer;
        const DeviceArray<float> x(std::vector<float>(n, 1.0F), first), y(n), z(n);
        Event loaded, read_first, read_second;
        loaded.record(first.get());
        loaded.hold_back(second.get());
        increment(x.data(), y.data(), n, first.get());
        read_first.record(first.get());
        increment(x.data(), z.data(), n, second.get());
        read_second.record(second.get());
        if (waits_for_both) read_first.hold_back(writer.get());
        read_second.hold_back(writer.get());
        check_cuda(cudaMemsetAsync(x.data(), 0, bytes, writer.get()), "cudaMemsetAsync");
        synchronize_all();
      });
      if (waits_for_both) {
        CHECK(error == "");
      } else {
        says(error, "race between streams");
      }
    });
  }
}

TEST_CASE("emulator: a host operation's ranges are checked like a kernel's accesses") {
  const auto run = [](size_t read_bytes, bool ordered) {
    return error_of([&] {
      const Stream a, b;
      const DeviceArray<float> x(std::vector<float>(n, 2.0F), a), y(n);
      Event loaded;
      loaded.record(a.get());
      if (ordered) loaded.hold_back(b.get());
      const float* const from = x.data();
      float* const to = y.data();
      check_cuda(emu::enqueue_host_op(b.get(), "halve", {{from, read_bytes}}, {{to, bytes}},
                                      [=] {
                                        for (int i = 0; i < n; ++i) to[i] = from[i] / 2;
                                      }),
                 "enqueue_host_op");
      const std::vector<float> halves = y.download(b);
      synchronize_all();
      CHECK(halves == std::vector<float>(n, 1.0F));
    });
  };
  for_each_seed([&] { CHECK(run(bytes, true) == ""); });
  for_each_seed([&] { says(run(bytes + 1, true), "out of bounds: 257-byte read"); });
  for_each_seed([&] { says(run(bytes, false), "race between streams"); });
}

TEST_CASE(
    "emulator: an external operation holds its stream, not others, and is polled to its end") {
  for_each_seed([] {
    const Stream communication, other;
    std::string log;
    int polls = 0;
    check_cuda(emu::enqueue_external(
                   communication.get(), "gather", {}, {}, [&log] { log += 's'; },
                   [&] {
                     if (++polls < 5) return false;
                     log += 'e';
                     return true;
                   }),
               "enqueue_external");
    enqueue_note(communication, log, 'n');
    enqueue_note(other, log, 'o');
    other.synchronize();
    CHECK(log.find('o') != std::string::npos);
    communication.synchronize();
    std::erase(log, 'o');
    CHECK(log == "sen");
    CHECK(polls == 5);
  });
}

TEST_CASE("emulator: external operations of two streams may need each other in either order") {
  for_each_seed([] {
    const Stream a, b;
    bool first = false, second = false;
    enqueue_exchange(a, first, second);
    enqueue_exchange(b, second, first);
    a.synchronize();
    CHECK((first && second));
    b.synchronize();
  });
}

TEST_CASE("emulator: progress starts external operations that nobody waits for") {
  for_each_seed([] {
    const Stream a;
    bool started = false, allowed = false;
    enqueue_exchange(a, started, allowed);
    CHECK(emu::progress());
    CHECK(started);
    allowed = true;
    CHECK(!emu::progress());
    a.synchronize();
  });
}

TEST_CASE(
    "emulator: what an external operation writes is NaN meanwhile, and racing with it an error") {
  const auto run = [](bool ordered) {
    return error_of([&] {
      const Stream communication, compute;
      const DeviceArray<float> x(std::vector<float>(n, 1.0F), communication), y(n);
      Event done, loaded;
      loaded.record(communication.get());
      loaded.hold_back(compute.get());
      float* const data = x.data();
      bool was_nan = false;
      check_cuda(emu::enqueue_external(
                     communication.get(), "all_gather", {}, {{data, bytes}}, [] {},
                     [&was_nan, data] {
                       was_nan = std::isnan(data[0]) && std::isnan(data[n - 1]);
                       for (int i = 0; i < n; ++i) data[i] = 3;
                       return true;
                     }),
                 "enqueue_external");
      done.record(communication.get());
      if (ordered) done.hold_back(compute.get());
      increment(data, y.data(), n, compute.get());
      synchronize_all();
      CHECK(was_nan);
      const std::vector<float> sums = y.download(compute);
      CHECK(sums == std::vector<float>(n, 4.0F));
    });
  };
  for_each_seed([&] { CHECK(run(true) == ""); });
  for_each_seed([&] { says(run(false), "race between streams"); });
}

TEST_CASE("emulator: a failing operation is the error of the next calls") {
  for_each_seed([] {
    const Stream stream;
    const std::string error = error_of([&] {
      check_cuda(emu::enqueue_host_op(stream.get(), "bad", {}, {},
                                      [] { emu::fail_operation("it went wrong"); }),
                 "enqueue_host_op");
      stream.synchronize();
    });
    says(error, "it went wrong");
    says(error_of([&] { stream.synchronize(); }), "it went wrong");
  });
}

TEST_CASE("emulator: a graph repeats what was captured from several streams") {
  for_each_seed([] {
    const Stream origin, side;
    const DeviceArray<float> x(std::vector<float>(n, 1.0F), origin), y(n), z(n);
    Event fork, join;
    Graph graph;
    begin_capture(origin);
    increment(x.data(), y.data(), n, origin.get());
    fork.record(origin.get());
    fork.hold_back(side.get());
    increment(y.data(), z.data(), n, side.get());
    join.record(side.get());
    join.hold_back(origin.get());
    increment(z.data(), const_cast<float*>(x.data()), n, origin.get());
    cudaStreamCaptureStatus status{};
    check_cuda(cudaStreamIsCapturing(side.get(), &status), "cudaStreamIsCapturing");
    CHECK(status == cudaStreamCaptureStatusActive);
    graph.end(origin);
    CHECK(x.download(origin) == std::vector<float>(n, 1.0F));
    for (int i = 0; i < 3; ++i) graph.launch(origin);
    CHECK(x.download(origin) == std::vector<float>(n, 10.0F));
    CHECK(emu::leak_report().find("1 graphs, 1 instantiated graphs") != std::string::npos);
  });
}

TEST_CASE("emulator: external operations are a part of graphs") {
  for_each_seed([] {
    const Stream origin;
    int starts = 0, ends = 0;
    Graph graph;
    begin_capture(origin);
    check_cuda(
        emu::enqueue_external(
            origin.get(), "reduce", {}, {}, [&] { ++starts; }, [&] { return ++ends == starts; }),
        "enqueue_external");
    graph.end(origin);
    CHECK(starts == 0);
    graph.launch(origin);
    graph.launch(origin);
    origin.synchronize();
    CHECK(starts == 2);
    CHECK(ends == 2);
  });
}

TEST_CASE("emulator: what CUDA forbids in a capture is an error and spoils the capture") {
  const auto error_in_capture = [](cudaStreamCaptureMode mode, const auto& forbidden) {
    const Stream origin;
    begin_capture(origin, mode);
    const std::string error = error_of([&] { forbidden(origin); });
    Graph graph;
    const std::string at_end = error_of([&] { graph.end(origin); });
    CHECK(error.empty() == at_end.empty());
    return error;
  };
  const auto mode = cudaStreamCaptureModeThreadLocal;
  const auto allocate = [](const Stream&) { const DeviceArray<float> x(1); };
  for_each_seed([&] {
    says(error_in_capture(mode, [](const Stream& s) { s.synchronize(); }), "while it is captured");
    says(error_in_capture(mode, [](const Stream&) { synchronize_all(); }),
         "device is synchronised");
    says(error_in_capture(mode, allocate), "memory is allocated");
    CHECK(error_in_capture(cudaStreamCaptureModeRelaxed, allocate) == "");
    says(error_in_capture(mode,
                          [](const Stream& s) {
                            Event event;
                            event.record(s.get());
                            event.synchronize();
                          }),
         "recorded in a capture");
    says(error_in_capture(mode,
                          [](const Stream& s) {
                            const Stream outside;
                            Event event;
                            event.record(outside.get());
                            event.hold_back(s.get());
                          }),
         "outside of the capture");
  });
}

TEST_CASE("emulator: a stream that was drawn into a capture must be joined again") {
  for_each_seed([] {
    const Stream origin, side;
    const DeviceArray<float> x(std::vector<float>(n, 1.0F), origin), y(n);
    origin.synchronize();
    Event fork;
    Graph graph;
    begin_capture(origin);
    fork.record(origin.get());
    fork.hold_back(side.get());
    increment(x.data(), y.data(), n, side.get());
    says(error_of([&] { graph.end(origin); }), "does not wait for its end");
  });
}
