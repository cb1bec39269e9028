#include "parallel/watch/member.h"

#include <algorithm>
#include <poll.h>
#include <utility>

#include "parallel/watch/diagnosis.h"
#include "parallel/watch/patience.h"
#include "parallel/watch/process.h"
#include "parallel/watch/record_file.h"
#include "runtime/error.h"

namespace supra {

using std::chrono::steady_clock;

namespace {

double seconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Connection introduce_to_hub(Descriptor socket, const Hello& hello) {
  Connection hub(std::move(socket));
  hub.send(MessageKind::hello, encode(hello));
  const auto deadline = steady_clock::now() + patience::connect;
  while (hub.closed() == Closed::no && steady_clock::now() < deadline) {
    pollfd waiting{.fd = hub.fd(), .events = hub.events(), .revents = 0};
    ::poll(&waiting, 1, static_cast<int>(patience::tick.count()));
    hub.flush();
    hub.receive();
    const std::optional<Message> answer = hub.next();
    if (!answer) continue;
    if (answer->kind != MessageKind::welcome) break;
    hub.trust();
    return hub;
  }
  fail_internal("what listens there is not this run's watchdog");
}

Member::Member(MemberOptions options, Connection hub, const FlightRecorder& recorder)
    : options_(std::move(options)), hub_(std::move(hub)), recorder_(recorder) {
  now_ = heard_ = heartbeat_ = steady_clock::now();
  thread_ = start_quiet_thread([this] { run(); });
}

Member::~Member() {
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  bell_.ring();
  thread_.join();
}

std::string Member::explain() {
  std::unique_lock lock(mutex_);
  explain_ = true;
  bell_.ring();
  explained_.wait_for(lock, patience::record + patience::file + patience::tick,
                      [&] { return explanation_.has_value(); });
  return explanation_.value_or("");
}

void Member::run() {
  for (;;) {
    pollfd sockets[] = {{.fd = bell_.fd(), .events = POLLIN, .revents = 0},
                        {.fd = hub_.fd(), .events = hub_.events(), .revents = 0}};
    const bool connected = hub_.closed() == Closed::no;
    ::poll(sockets, connected ? 2 : 1, static_cast<int>(patience::tick.count()));
    bell_.quiet();
    const Time before = now_;
    now_ = steady_clock::now();
    if (now_ - before > patience::stopped) {
      resumed_ = now_.time_since_epoch() / std::chrono::nanoseconds(1);
      heard_ = now_;
    }
    if (connected) {
      hub_.flush();
      hub_.receive();
      while (const std::optional<Message> message = hub_.next()) handle(*message);
    }
    {
      const std::lock_guard lock(mutex_);
      if (leaving_) break;
      if (std::exchange(explain_, false)) {
        hub_.send(MessageKind::explain);
        if (hub_.closed() != Closed::no) explanation_.emplace();
        explained_.notify_all();
      }
    }
    check_limits();
    check_hub();
    if (now_ - heartbeat_ < patience::heartbeat) continue;
    heartbeat_ = now_;
    if (hub_.flushed()) hub_.send(MessageKind::heartbeat);
  }
  hub_.send(MessageKind::goodbye);
  const Time deadline = steady_clock::now() + patience::print;
  while (!hub_.flushed() && steady_clock::now() < deadline) {
    std::this_thread::sleep_for(patience::tick);
    hub_.flush();
  }
}

void Member::handle(const Message& message) {
  heard_ = now_;
  switch (message.kind) {
    case MessageKind::gather: {
      told_ = now_;
      hub_.send(MessageKind::record, encode(recorder_.snapshot()));
      const std::string error = write_own_record();
      if (!error.empty())
        print_bounded(fmt::format("supra: watchdog: rank {}: {}\n", options_.rank, error));
      hub_.send(MessageKind::written);
      break;
    }
    case MessageKind::end:
      end_process();
    case MessageKind::explanation: {
      const std::lock_guard lock(mutex_);
      explanation_ = message.content;
      explained_.notify_all();
      break;
    }
    case MessageKind::goodbye:
      hub_left_ = true;
      break;
    default:
      break;
  }
}

std::optional<std::string> Member::exceeded() const {
  const FlightRecorder::Status status = recorder_.status();
  if (status.paused) return std::nullopt;
  const auto longer_than = [&](int64_t since, std::chrono::seconds limit) {
    const std::chrono::nanoseconds age(status.now - std::max(since, resumed_));
    return limit.count() > 0 && age > limit;
  };
  if (status.blocked &&
      longer_than(status.collective.blocked_since(), options_.collective_timeout)) {
    return fmt::format("has waited in {} for more than watch.collective_timeout, {} s",
                       status.collective.name(), options_.collective_timeout.count());
  }
  if (longer_than(status.active_since, options_.step_timeout)) {
    return fmt::format("has been in {} for more than watch.step_timeout, {} s",
                       recorder_.snapshot().activity, options_.step_timeout.count());
  }
  return std::nullopt;
}

void Member::check_limits() {
  if (!alarm_.empty()) return;
  const std::optional<std::string> reason = exceeded();
  if (!reason) return;
  alarm_ = *reason;
  alarmed_ = now_;
  hub_.send(MessageKind::alarm, alarm_);
}

/// The hub decides for all as long as it is there.
void Member::check_hub() {
  const std::string hub = name_rank(0, options_.hub_host);
  if (hub_left_) {
    if (!alarm_.empty()) end_alone(fmt::format("{} had left in good order", hub));
    return;
  }
  if (hub_.closed() == Closed::lost) end_alone(fmt::format("the connection to {} is lost", hub));
  if (hub_.closed() == Closed::by_other) {
    if (closed_ == Time{}) closed_ = now_;
    if (now_ - closed_ > patience::launcher)
      end_alone(fmt::format("{} has ended without a word", hub));
    return;
  }
  if (now_ - told_ < patience::hub) return;  // it has begun to end the run
  const auto quiet = now_ - heard_;
  // The hub gives up a rank first, if it is this one that is cut off.
  const bool given_up =
      options_.silence.count() > 0 && quiet > options_.silence + patience::quiet_hub;
  if (given_up || (!alarm_.empty() && quiet > patience::quiet_hub)) {
    end_alone(
        fmt::format("{} does not answer, and was last heard of {:.1f} s ago", hub, seconds(quiet)));
  }
  if (!alarm_.empty() && now_ - alarmed_ > patience::hub)
    end_alone(fmt::format("{} did not end the run", hub));
}

std::string Member::write_own_record() const {
  return run_bounded(patience::file, [options = options_, record = recorder_.snapshot()] {
    write_record(options.run_folder, options.rank, options.ranks, options.host, record);
  });
}

void Member::end_alone(const std::string& reason) {
  const RankView self{.rank = options_.rank,
                      .host = options_.host,
                      .presence = Presence::answers,
                      .quiet_seconds = 0,
                      .record = recorder_.snapshot()};
  std::string text = fmt::format("supra: watchdog: {} ends by itself: {}\n",
                                 name_rank(self.rank, self.host), reason);
  for (const std::string& line : diagnose({self}).lines())
    text += fmt::format("supra: watchdog: {}\n", line);
  print_bounded(text);
  write_own_record();
  end_process();
}

}  // namespace supra
