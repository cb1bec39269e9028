#include "parallel/watch/hub.h"

#include <algorithm>
#include <map>
#include <poll.h>
#include <set>

#include "parallel/hosts.h"
#include "parallel/watch/patience.h"
#include "parallel/watch/process.h"
#include "parallel/watch/record_file.h"
#include "runtime/error.h"

namespace supra {

using std::chrono::steady_clock;

Hub::Hub(HubOptions options, Descriptor first, std::optional<Listener> listener)
    : options_(std::move(options)),
      listener_(std::move(listener)),
      peers_(static_cast<size_t>(options_.ranks)) {
  now_ = heartbeat_ = steady_clock::now();
  for (Peer& peer : peers_) peer.heard = now_;
  strangers_.push_back({Connection(std::move(first)), now_});
  thread_ = start_quiet_thread([this] { run(); });
}

Hub::~Hub() {
  leaving_ = true;
  bell_.ring();
  thread_.join();
}

void Hub::run() {
  Time leave_deadline = Time::max();
  for (;;) {
    wait_for_events();
    const Time before = now_;
    now_ = steady_clock::now();
    admit();
    for (int rank = 0; rank < options_.ranks; ++rank) hear(rank);
    if (now_ - before > patience::stopped) {
      stopped_seconds_ += std::chrono::duration<double>(now_ - before).count();
      for (Peer& peer : peers_) peer.heard = now_;
    }
    check_presence();
    go_on_with_incident();
    if (now_ - heartbeat_ >= patience::heartbeat) {
      send_to_all(MessageKind::heartbeat);
      heartbeat_ = now_;
    }
    if (!leaving_) continue;
    if (leave_deadline == Time::max()) leave_deadline = now_ + patience::leave;
    const bool ending = incident_ && incident_->fatal;
    if (!ending && (now_ > leave_deadline || !anyone_connected())) break;
  }
  send_to_all(MessageKind::goodbye);
}

void Hub::wait_for_events() {
  std::vector<pollfd> sockets{{.fd = bell_.fd(), .events = POLLIN, .revents = 0}};
  const auto add = [&](const Connection& c) {
    sockets.push_back({.fd = c.fd(), .events = c.events(), .revents = 0});
  };
  if (listener_ && has_room())
    sockets.push_back({.fd = listener_->socket.get(), .events = POLLIN, .revents = 0});
  for (const Stranger& stranger : strangers_) add(stranger.connection);
  for (const Peer& peer : peers_) {
    if (peer.connection) add(*peer.connection);
  }
  ::poll(sockets.data(), sockets.size(), static_cast<int>(patience::tick.count()));
  bell_.quiet();
}

/// Takes in whoever proves to be a rank of this run, until all are there.
void Hub::admit() {
  if (!listener_ && strangers_.empty()) return;
  while (listener_ && has_room()) {
    Descriptor caller = listener_->accept();
    if (!caller) break;
    strangers_.push_back({Connection(std::move(caller)), now_});
  }
  std::erase_if(strangers_, [&](Stranger& stranger) {
    stranger.connection.receive();
    return introduce(stranger) || stranger.connection.closed() != Closed::no ||
           now_ - stranger.since > patience::connect;
  });
  const auto known = [](const Peer& peer) { return peer.host != unknown_host; };
  if (!std::all_of(peers_.begin(), peers_.end(), known)) return;
  listener_.reset();
  strangers_.clear();
}

/// So that callers of no account cannot take all file descriptors.
bool Hub::has_room() const {
  return strangers_.size() < peers_.size() + 64;
}

bool Hub::introduce(Stranger& stranger) {
  const std::optional<Message> message = stranger.connection.next();
  if (!message) return false;
  try {
    const Hello hello = decode_hello(message->content);
    if (message->kind != MessageKind::hello || hello.token != options_.token || hello.rank < 0 ||
        hello.rank >= options_.ranks ||
        peers_[static_cast<size_t>(hello.rank)].host != unknown_host)
      return true;
    Peer& peer = peers_[static_cast<size_t>(hello.rank)];
    Connection& connection = peer.connection.emplace(std::move(stranger.connection));
    peer.host = hello.host;
    peer.presence = Presence::answers;
    peer.heard = now_;
    connection.trust();
    connection.send(MessageKind::welcome);
  } catch (const Error&) {
    // No rank of ours.
  }
  return true;
}

void Hub::hear(int rank) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  if (!peer.connection) return;
  peer.connection->flush();
  peer.connection->receive();
  try {
    while (const std::optional<Message> message = peer.connection->next()) {
      peer.heard = now_;
      handle(rank, *message);
      if (!peer.connection) return;
    }
  } catch (const Error& e) {
    peer.connection.reset();
    peer.presence = Presence::silent;
    begin_incident(fmt::format("{} sent what is no message: {}", name(rank), e.what()), true);
    return;
  }
  const Closed closed = peer.connection->closed();
  if (closed == Closed::no) return;
  peer.connection.reset();
  peer.presence = closed == Closed::by_other ? Presence::ended : Presence::silent;
  if (peer.failed) return;  // as it said it would
  if (closed == Closed::by_other) {
    expect_end(fmt::format("{} has ended without a word", name(rank)), patience::launcher);
  } else {
    begin_incident(fmt::format("the connection to {} is lost", name(rank)), true);
  }
}

void Hub::handle(int rank, const Message& message) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  switch (message.kind) {
    case MessageKind::alarm:
      begin_incident(fmt::format("{} {}", name(rank), message.content), true);
      break;
    case MessageKind::explain:
      peer.failed = true;
      expect_end(fmt::format("{} ended by an error, and nobody ended the other ranks", name(rank)),
                 patience::failed);
      break;
    case MessageKind::record:
      peer.record = decode_record(message.content);
      break;
    case MessageKind::written:
      peer.written = true;
      break;
    case MessageKind::goodbye:
      peer.presence = Presence::left;
      peer.connection.reset();
      break;
    case MessageKind::heartbeat:
      break;
    default:
      fail_internal("a member's message of kind {}", static_cast<int>(message.kind));
  }
}

void Hub::check_presence() {
  for (int rank = 0; rank < options_.ranks; ++rank) {
    Peer& peer = peers_[static_cast<size_t>(rank)];
    if (!peer.connection || options_.silence.count() == 0) continue;
    if (now_ - peer.heard <= options_.silence) continue;
    begin_incident(fmt::format("nothing was heard of {} for {} s", name(rank),
                               options_.silence.count() / 1000),
                   true);
  }
  if (expected_end_ && now_ > expected_end_->deadline && anyone_connected())
    begin_incident(expected_end_->cause, true);
}

/// Records are gathered and written at once, for the end may come at any moment.
void Hub::expect_end(const std::string& cause, std::chrono::milliseconds within) {
  if (!expected_end_) expected_end_ = {.cause = cause, .deadline = now_ + within};
  begin_incident(cause, false);
}

/// The first cause counts; the others follow from it, more often than not.
void Hub::begin_incident(const std::string& cause, bool fatal) {
  if (incident_ && (incident_->fatal || !fatal)) return;
  for (Peer& peer : peers_) {
    peer.record.reset();
    peer.written = false;
  }
  incident_ = Incident{.cause = cause, .fatal = fatal, .began = now_};
  send_to_all(MessageKind::gather);
}

void Hub::go_on_with_incident() {
  if (!incident_) return;
  bool recorded = true, written = true;
  for (const Peer& peer : peers_) {
    recorded &= !peer.connection || peer.record;
    written &= !peer.connection || !peer.record || peer.written;
  }
  const auto age = now_ - incident_->began;
  if (!recorded && age < patience::record) return;
  if (!written && age < patience::record + patience::file) return;
  if (incident_->fatal) end_all(incident_->cause);
  explain();
  incident_.reset();
}

/// To ranks that are about to end by an error: how their calls differ from the others'. That a rank
/// has not come to a call yet explains none.
void Hub::explain() {
  const Diagnosis diagnosis = diagnose(views());
  std::vector<std::string> lines = diagnosis.absent;
  lines.insert(lines.end(), diagnosis.differ.begin(), diagnosis.differ.end());
  const std::string text = fmt::format("{}", fmt::join(lines, "; ")).substr(0, max_content);
  for (Peer& peer : peers_) {
    if (peer.failed && peer.connection) peer.connection->send(MessageKind::explanation, text);
  }
}

void Hub::end_all(const std::string& cause) {
  constexpr size_t most_lines = 16;
  const std::vector<RankView> ranks = views();
  std::vector<std::string> lines = diagnose(ranks).lines();
  if (lines.size() > most_lines) {
    const size_t more = lines.size() - most_lines;
    lines.resize(most_lines);
    lines.push_back(fmt::format("and {} ranks more", more));
  }
  if (stopped_seconds_ > 0) {
    lines.push_back(
        fmt::format("{} itself had been stopped, for {:.1f} s in all", name(0), stopped_seconds_));
  }
  lines.push_back(fmt::format("the run ends, for {}; what each rank did last is in {}/watch", cause,
                              options_.run_folder));
  std::string text;
  for (const std::string& line : lines) text += fmt::format("supra: watchdog: {}\n", line);
  print_bounded(text);
  blame(ranks);
  for (Peer& peer : peers_) {
    // Rank 0 ends with this thread, the last.
    if (peer.connection && &peer != &peers_[0]) peer.connection->send(MessageKind::end);
  }
  const Time deadline = steady_clock::now() + patience::print;
  const auto sent = [](const Peer& peer) { return !peer.connection || peer.connection->flushed(); };
  while (!std::all_of(peers_.begin(), peers_.end(), sent) && steady_clock::now() < deadline) {
    std::this_thread::sleep_for(patience::tick);
    for (Peer& peer : peers_) {
      if (peer.connection) peer.connection->flush();
    }
  }
  end_process();
}

std::vector<RankView> Hub::views() const {
  std::vector<RankView> views;
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    const Peer& peer = peers_[rank];
    RankView view{.rank = static_cast<int>(rank),
                  .host = peer.host,
                  .presence = peer.presence,
                  .quiet_seconds = std::chrono::duration<double>(now_ - peer.heard).count(),
                  .record = {}};
    if (peer.record) {
      view.presence = Presence::answers;
      view.record = *peer.record;
    } else if (peer.connection) {
      view.presence = Presence::silent;
    }
    views.push_back(std::move(view));
  }
  return views;
}

/// Hosts of ranks that do not answer. When this one has lost its network, or no other host answers
/// of several, it is this one that is cut off.
void Hub::blame(const std::vector<RankView>& ranks) const {
  std::map<std::string, std::string> silent;
  std::set<std::string> others;
  for (const RankView& rank : ranks) {
    if (rank.host != options_.host) others.insert(rank.host);
    if (rank.presence != Presence::silent || rank.host == unknown_host) continue;
    silent.emplace(rank.host, fmt::format("rank {} did not answer for {:.1f} s", rank.rank,
                                          rank.quiet_seconds));
  }
  const auto away = silent.size() - silent.count(options_.host);
  if (away > 0 && (!network_is_up() || (away > 1 && away == others.size())))
    silent = {{options_.host, "it reached none of the other hosts"}};
  if (silent.empty()) return;
  const std::string folder = options_.run_folder;
  const std::string error = run_bounded(patience::file, [folder, silent] {
    for (const auto& [host, reason] : silent) blame_host(folder, host, reason);
  });
  if (!error.empty())
    print_bounded(fmt::format("supra: watchdog: {}/blamed-nodes: {}\n", folder, error));
}

void Hub::send_to_all(MessageKind kind) {
  for (Peer& peer : peers_) {
    // Signs of life do not pile up for one that takes none.
    if (peer.connection && (kind != MessageKind::heartbeat || peer.connection->flushed()))
      peer.connection->send(kind);
  }
}

bool Hub::anyone_connected() const {
  return std::any_of(peers_.begin(), peers_.end(),
                     [](const Peer& peer) { return peer.connection.has_value(); });
}

std::string Hub::name(int rank) const {
  return name_rank(rank, peers_[static_cast<size_t>(rank)].host);
}

}  // namespace supra
