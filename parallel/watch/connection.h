#pragma once
// TCP between the watchdogs of a run: sockets that never block, and whole messages over them.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/watch/messages.h"
#include "runtime/descriptor.h"

namespace supra {

/// Wakes a thread that polls it, from another.
class Bell {
 public:
  Bell();
  void ring() const;
  void quiet() const;  ///< until the next ring()
  int fd() const { return fd_.get(); }

 private:
  Descriptor fd_;
};

/// How a connection has come to its end.
enum class Closed : uint8_t {
  no,
  by_other,  ///< the other process, or its host's kernel for it, closed it
  lost,      ///< the network or the other host is gone, or what came was no message
};

class Connection {
 public:
  explicit Connection(Descriptor socket);

  int fd() const { return socket_.get(); }
  /// Events to poll for.
  short events() const;

  /// Sends now what the network takes, the rest by flush().
  void send(MessageKind kind, std::string_view content = {});
  void flush();
  bool flushed() const { return out_.empty(); }

  /// Takes what has come. Messages that came before a close can still be had by next().
  void receive();
  std::optional<Message> next();

  Closed closed() const { return closed_; }

  /// From now on messages may be long: the other side has said who it is.
  void trust() { longest_ = max_content; }

 private:
  void close_by(int error);

  Descriptor socket_;
  std::string in_, out_;
  size_t longest_ = max_hello;
  Closed closed_ = Closed::no;
};

/// Listens on a port of the system's choice.
struct Listener {
  Listener();
  Descriptor socket;
  uint16_t port = 0;
  /// The next that has called; empty: none.
  Descriptor accept() const;
};

/// IPv4 addresses as in sin_addr, of interfaces that are up; loopback last.
std::vector<uint32_t> own_addresses();
/// Whether an interface other than loopback has a carrier, or there is none but loopback.
bool network_is_up();
std::string to_string_address(uint32_t address);

/// Empty, with errno, when there is no connection within the limit.
Descriptor connect_to(uint32_t address, uint16_t port, std::chrono::milliseconds limit);

}  // namespace supra
