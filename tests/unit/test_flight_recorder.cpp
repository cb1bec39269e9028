// The ring of a rank's collectives, its way over the wire, and the communicator that fills it.

#include <doctest/doctest.h>

#include "parallel/watch/connection.h"
#include "parallel/watch/fault.h"
#include "parallel/watch/flight_recorder.h"
#include "parallel/watch/hub.h"
#include "parallel/watch/member.h"
#include "parallel/watch/messages.h"
#include "parallel/watch/recording_communicator.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;

namespace {

uint64_t call(FlightRecorder& recorder, uint8_t communicator, const std::string& what) {
  return recorder.enter(communicator, Operation::all_gather, 8, what);
}

template <class F>
std::string internal_error(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("flight recorder: keeps the last calls, numbered for each communicator") {
  FlightRecorder recorder(3);
  const uint8_t a = recorder.add_communicator("a"), b = recorder.add_communicator("b");
  for (int n = 1; n <= 3; ++n) {
    call(recorder, a, fmt::format("a{}", n));
    call(recorder, b, fmt::format("b{}", n));
  }
  CHECK(recorder.next_sequence(a) == 4);
  const FlightRecord record = recorder.snapshot();
  CHECK(record.communicators == std::vector<std::string>{"a", "b"});
  REQUIRE(record.collectives.size() == 3);
  const char* const names[] = {"all_gather #2 of b2", "all_gather #3 of a3", "all_gather #3 of b3"};
  for (size_t i = 0; i < 3; ++i) CHECK(record.collectives[i].name() == names[i]);
}

TEST_CASE("flight recorder: a rank is in the call it has entered or waits for, and in no other") {
  FlightRecorder recorder;
  const uint8_t mpi = recorder.add_communicator("mpi");
  CHECK_FALSE(recorder.status().blocked);
  const uint64_t first = call(recorder, mpi, "first");
  CHECK(recorder.status().blocked);
  recorder.set(first, CollectiveState::under_way);
  CHECK_FALSE(recorder.status().blocked);
  const uint64_t second = call(recorder, mpi, "second");
  recorder.set(second, CollectiveState::under_way);
  recorder.set(first, CollectiveState::awaited);
  REQUIRE(recorder.status().blocked);
  CHECK(recorder.status().collective.name() == "all_gather #1 of first");
  recorder.set(first, CollectiveState::done);
  CHECK_FALSE(recorder.status().blocked);
  CHECK(recorder.snapshot().collectives[0].ended > 0);
  CHECK(recorder.snapshot().collectives[1].ended == 0);
}

TEST_CASE("flight recorder: a call that the ring has forgotten changes no other") {
  FlightRecorder recorder(2);
  const uint8_t mpi = recorder.add_communicator("mpi");
  const uint64_t old = call(recorder, mpi, "old");
  for (int n = 0; n < 2; ++n) recorder.set(call(recorder, mpi, "new"), CollectiveState::under_way);
  recorder.set(old, CollectiveState::awaited);
  recorder.set(old, CollectiveState::done);
  for (const Collective& c : recorder.snapshot().collectives)
    CHECK(c.state == CollectiveState::under_way);
}

TEST_CASE("flight recorder: names that are too long are cut") {
  FlightRecorder recorder;
  const uint8_t mpi = recorder.add_communicator("mpi");
  call(recorder, mpi, std::string(1000, 'x'));
  recorder.begin(std::string(1000, 'y'));
  CHECK(recorder.snapshot().collectives[0].name() == "all_gather #1 of " + std::string(60, 'x'));
  CHECK(recorder.snapshot().activity == std::string(60, 'y'));
}

TEST_CASE("messages: a record arrives as it was sent") {
  FlightRecorder recorder;
  recorder.begin("step 3");
  for (const char* name : {"mpi", "nccl"}) {
    const uint8_t c = recorder.add_communicator(name);
    recorder.set(call(recorder, c, "block.1/trained"), CollectiveState::done);
    call(recorder, c, "");
  }
  const FlightRecord sent = recorder.snapshot();
  const FlightRecord got = decode_record(encode(sent));
  CHECK(got.now == sent.now);
  CHECK(got.unix_time == sent.unix_time);
  CHECK(got.activity == sent.activity);
  CHECK(got.active_since == sent.active_since);
  CHECK(got.communicators == sent.communicators);
  REQUIRE(got.collectives.size() == sent.collectives.size());
  for (size_t i = 0; i < got.collectives.size(); ++i) {
    const Collective &a = got.collectives[i], &b = sent.collectives[i];
    CHECK(a.name() == b.name());
    CHECK(a.same_call(b));
    CHECK(a.state == b.state);
    CHECK(a.begun == b.begun);
    CHECK(a.ended == b.ended);
    CHECK(a.communicator == b.communicator);
  }
}

TEST_CASE("messages: what is cut short, or names what is not there, is refused") {
  FlightRecorder recorder;
  const uint8_t mpi = recorder.add_communicator("mpi");
  call(recorder, mpi, "a");
  const std::string whole = encode(recorder.snapshot());
  const size_t head = whole.size() - encode(FlightRecord{}).size();  // of the call and the name
  for (size_t size = 0; size < whole.size(); ++size) {
    if (size == whole.size() - head + 4) continue;  // a record without the call
    CHECK(internal_error([&] { decode_record(whole.substr(0, size)); }).find("too early") !=
          std::string::npos);
  }
  FlightRecord record = recorder.snapshot();
  record.collectives[0].communicator = 1;
  CHECK(internal_error([&] { decode_record(encode(record)); }) ==
        "a watchdog's record of communicator 1 of 1");
  record = recorder.snapshot();
  record.collectives.push_back(record.collectives[0]);
  CHECK(internal_error([&] { decode_record(encode(record)); }) ==
        "a watchdog's record in which #1 follows #1");
  record = recorder.snapshot();
  record.collectives[0].operation = static_cast<Operation>(operations);
  CHECK(internal_error([&] { decode_record(encode(record)); }) ==
        "a watchdog's message with 4 of 4 values");
}

TEST_CASE("hub: takes in ranks that know the token, and nobody else") {
  const TemporaryFolder folder;
  const Token token{1, 2, 3};
  const uint32_t loopback = own_addresses().back();
  Listener listener, nobody;  // rank 0 itself has no part in this
  const auto reach = [&, port = listener.port] {
    return connect_to(loopback, port, std::chrono::seconds(5));
  };
  Hub hub({.run_folder = folder.path(), .host = "n1", .ranks = 2, .token = token, .silence = {}},
          connect_to(loopback, nobody.port, std::chrono::seconds(5)), std::move(listener));
  const auto introduce = [&](const Token& known, int rank) {
    return introduce_to_hub(reach(), {.token = known, .rank = rank, .host = "n2"});
  };
  CHECK_THROWS_AS(introduce({}, 1), Error);
  CHECK_THROWS_AS(introduce(token, 2), Error);
  CHECK_THROWS_AS(introduce(token, -1), Error);
  for (const std::string& words : {std::string(5, '\x7f'), std::string(max_hello + 1, 0)}) {
    Connection stranger(reach());
    stranger.send(MessageKind::hello, words);
    while (stranger.closed() == Closed::no) stranger.receive();  // the hub hangs up
  }
  Connection rank = introduce(token, 1);
  CHECK_THROWS_AS(introduce(token, 1), Error);  // it is there already
  rank.send(MessageKind::goodbye);
}

TEST_CASE("recording communicator: makes the calls, and records them with what they move") {
  FlightRecorder recorder;
  std::optional<Fault> fault;
  const auto communicator =
      make_recording_communicator(make_single_communicator(), "mpi", recorder, true, fault);
  float from[2] = {1, 2}, to[2] = {0, 0};
  const Tensor source(from, DType::fp32, {2}), target(to, DType::fp32, {2});
  Pending pending = communicator->all_gather(source, target, "block.0/trained");
  CHECK(recorder.snapshot().collectives[0].state == CollectiveState::under_way);
  pending.wait();
  CHECK(to[1] == 2);
  communicator->reduce_scatter(target, source, "head/trained").wait();
  CHECK(communicator->gather_values(7) == std::vector<int>{7});
  communicator->broadcast_host(from, 4, 0);
  const FlightRecord record = recorder.snapshot();
  REQUIRE(record.collectives.size() == 4);
  CHECK(record.collectives[0].name() == "all_gather #1 of block.0/trained");
  CHECK(record.collectives[1].name() == "reduce_scatter #2 of head/trained");
  CHECK(record.collectives[2].name().starts_with(
      "all_gather_host #3 at tests/unit/test_flight_recorder.cpp:"));
  CHECK(record.collectives[3].name().starts_with(
      "broadcast_host #4 at tests/unit/test_flight_recorder.cpp:"));
  for (const Collective& c : record.collectives) CHECK(c.state == CollectiveState::done);
  CHECK(record.collectives[0].bytes == 8);
}

TEST_CASE("faults: a call is left out once") {
  FlightRecorder recorder;
  std::optional<Fault> fault = parse_fault("rank=0,collective=2,do=skip");
  const auto communicator =
      make_recording_communicator(make_single_communicator(), "mpi", recorder, false, fault);
  std::vector<int> got;
  for (int n = 1; n <= 3; ++n) got.push_back(communicator->gather_values(n)[0]);
  CHECK(got == std::vector<int>{1, 0, 3});
  CHECK(recorder.snapshot().collectives.size() == 2);
  CHECK_FALSE(fault);
}

TEST_CASE("faults: are read, or refused with how they are written") {
  const Fault fault = parse_fault("rank=12,collective=1842,do=stop");
  CHECK(fault.rank == 12);
  CHECK(fault.collective == 1842);
  CHECK(fault.action == FaultAction::stop);
  for (const char* wrong :
       {"", "rank=1", "rank=1,collective=2",
        "rank=1,collective=2,do=", "rank=1,collective=2,do=burn", "rank=-1,collective=2,do=skip",
        "rank=1,collective=0,do=skip", "rank=x,collective=2,do=skip",
        "rank=1,collective=2,do=skip,", "collective=2,rank=1,do=skip",
        "rank=99999999999,collective=2,do=skip", " rank=1,collective=2,do=skip"}) {
    CHECK(bad_input([&] { parse_fault(wrong); }).find("rank=R,collective=N,do=A") !=
          std::string::npos);
  }
}
