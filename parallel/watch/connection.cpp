#include "parallel/watch/connection.h"

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <cerrno>
#include <cstring>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utility>

#include "runtime/error.h"

namespace supra {
namespace {

/// Length of the content, and kind.
constexpr size_t header = sizeof(uint32_t) + 1;

sockaddr_in ipv4(uint32_t address, uint16_t port) {
  sockaddr_in place{};
  place.sin_family = AF_INET;
  place.sin_addr.s_addr = address;
  place.sin_port = htons(port);
  return place;
}

template <class Visitor>
void for_each_interface(const Visitor& visit) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return;
  for (const ifaddrs* i = all; i; i = i->ifa_next) visit(*i);
  ::freeifaddrs(all);
}

}  // namespace

Bell::Bell() : fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  SUPRA_CHECK(fd_, "eventfd failed: {}", std::strerror(errno));
}

void Bell::ring() const {
  const uint64_t once = 1;
  // It fails only when the bell rings already.
  [[maybe_unused]] const auto written = ::write(fd_.get(), &once, sizeof(once));
}

void Bell::quiet() const {
  uint64_t rings = 0;
  [[maybe_unused]] const auto read = ::read(fd_.get(), &rings, sizeof(rings));
}

Connection::Connection(Descriptor socket) : socket_(std::move(socket)) {
  const int on = 1;
  ::setsockopt(fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

short Connection::events() const {
  return static_cast<short>(POLLIN | (out_.empty() ? 0 : POLLOUT));
}

void Connection::send(MessageKind kind, std::string_view content) {
  if (closed_ != Closed::no) return;
  SUPRA_CHECK(content.size() <= max_content, "a watchdog's message of {} bytes", content.size());
  const auto size = static_cast<uint32_t>(content.size());
  out_.append(reinterpret_cast<const char*>(&size), sizeof(size));
  out_.push_back(static_cast<char>(kind));
  out_.append(content);
  flush();
}

void Connection::flush() {
  while (!out_.empty() && closed_ == Closed::no) {
    const ssize_t n = ::send(fd(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      // What came before the other side closed is still to be read: receive() finds the end.
      if (errno == EPIPE || errno == ECONNRESET)
        out_.clear();
      else if (errno != EAGAIN && errno != EWOULDBLOCK)
        close_by(errno);
      return;
    }
    out_.erase(0, static_cast<size_t>(n));
  }
}

void Connection::receive() {
  std::array<char, 65536> piece;
  // No more than one message and a piece wait in memory at once.
  while (closed_ == Closed::no && in_.size() < header + longest_) {
    const ssize_t n = ::recv(fd(), piece.data(), piece.size(), MSG_DONTWAIT);
    if (n > 0) {
      in_.append(piece.data(), static_cast<size_t>(n));
    } else if (n == 0) {
      close_by(0);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return;
    } else if (errno != EINTR) {
      close_by(errno);
    }
  }
}

std::optional<Message> Connection::next() {
  if (in_.size() < header) return std::nullopt;
  uint32_t size = 0;
  std::memcpy(&size, in_.data(), sizeof(size));
  const auto kind = static_cast<uint8_t>(in_[sizeof(size)]);
  if (size > longest_ || kind >= message_kinds) {
    in_.clear();
    closed_ = Closed::lost;
    return std::nullopt;
  }
  if (in_.size() < header + size) return std::nullopt;
  Message message{static_cast<MessageKind>(kind), in_.substr(header, size)};
  in_.erase(0, header + size);
  return message;
}

void Connection::close_by(int error) {
  out_.clear();
  closed_ = error == 0 || error == ECONNRESET ? Closed::by_other : Closed::lost;
}

Listener::Listener() : socket(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
  sockaddr_in place = ipv4(INADDR_ANY, 0);
  socklen_t size = sizeof(place);
  auto* const address = reinterpret_cast<sockaddr*>(&place);
  if (!socket || ::bind(socket.get(), address, size) != 0 || ::listen(socket.get(), 4096) != 0 ||
      ::getsockname(socket.get(), address, &size) != 0)
    fail_internal("the watchdog cannot listen on a TCP port: {}", std::strerror(errno));
  port = ntohs(place.sin_port);
}

Descriptor Listener::accept() const {
  return Descriptor(::accept4(socket.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

std::vector<uint32_t> own_addresses() {
  std::vector<uint32_t> addresses, loopback;
  for_each_interface([&](const ifaddrs& i) {
    if (!i.ifa_addr || i.ifa_addr->sa_family != AF_INET || !(i.ifa_flags & IFF_UP)) return;
    const uint32_t address = reinterpret_cast<const sockaddr_in*>(i.ifa_addr)->sin_addr.s_addr;
    (i.ifa_flags & IFF_LOOPBACK ? loopback : addresses).push_back(address);
  });
  addresses.insert(addresses.end(), loopback.begin(), loopback.end());
  return addresses;
}

bool network_is_up() {
  bool any = false, up = false;
  for_each_interface([&](const ifaddrs& i) {
    if (i.ifa_flags & IFF_LOOPBACK) return;
    any = true;
    up |= (i.ifa_flags & IFF_UP) && (i.ifa_flags & IFF_RUNNING);
  });
  return up || !any;
}

std::string to_string_address(uint32_t address) {
  const in_addr in{address};
  std::array<char, INET_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET, &in, text.data(), text.size());
  return text.data();
}

Descriptor connect_to(uint32_t address, uint16_t port, std::chrono::milliseconds limit) {
  Descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return {};
  const sockaddr_in place = ipv4(address, port);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&place), sizeof(place)) == 0)
    return socket;
  if (errno != EINPROGRESS) return {};
  pollfd waiting{.fd = socket.get(), .events = POLLOUT, .revents = 0};
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (int ready = 0; ready <= 0;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      errno = ETIMEDOUT;
      return {};
    }
    ready = ::poll(&waiting, 1, static_cast<int>(left.count()));
    if (ready < 0 && errno != EINTR) return {};
  }
  int error = 0;
  socklen_t size = sizeof(error);
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  if (error == 0) return socket;
  errno = error;
  return {};
}

}  // namespace supra
