#pragma once
// What the watchdogs of a run say to each other, as bytes. Whatever comes from a connection is
// checked before it is used; what does not fit is an Error.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "parallel/watch/flight_recorder.h"

namespace supra {

enum class MessageKind : uint8_t {
  hello,        ///< member: its token, rank and host, first of all
  welcome,      ///< hub: it knows this member
  heartbeat,    ///< both
  alarm,        ///< member: why the run must end
  explain,      ///< member: about to end by an error, asks what the records show
  gather,       ///< hub: send your record, and write it
  record,       ///< member
  written,      ///< member: its record is in the run folder, or cannot be
  explanation,  ///< hub: the answer to `explain`
  end,          ///< hub: all ranks end now
  goodbye,      ///< both: ends in good order
};
constexpr int message_kinds = 11;

struct Message {
  MessageKind kind{};
  std::string content;
};

/// The longest content that each end takes, and of the first message.
constexpr size_t max_content = size_t{1} << 20, max_hello = 512;

/// A random number that proves a connection to come from this run.
using Token = std::array<uint8_t, 16>;

struct Hello {
  Token token{};
  int32_t rank = 0;
  std::string host;
};
std::string encode(const Hello& hello);
Hello decode_hello(std::string_view content);

std::string encode(const FlightRecord& record);
/// Communicators that are not in it, and numbers out of order, are refused too.
FlightRecord decode_record(std::string_view content);

}  // namespace supra
