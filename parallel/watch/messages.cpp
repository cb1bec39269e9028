#include "parallel/watch/messages.h"

#include <algorithm>
#include <cstring>

#include "runtime/error.h"

namespace supra {
namespace {

class Writer {
 public:
  template <class T>
  void number(T x) {
    static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>);
    char bytes[sizeof(T)];
    std::memcpy(bytes, &x, sizeof(T));
    content_.append(bytes, sizeof(T));
  }
  void text(std::string_view t) {
    t = t.substr(0, UINT8_MAX);
    number(static_cast<uint8_t>(t.size()));
    content_.append(t);
  }
  std::string take() { return std::move(content_); }

 private:
  std::string content_;
};

class Reader {
 public:
  explicit Reader(std::string_view content) : rest_(content) {}

  template <class T>
  T number() {
    T x;
    std::memcpy(&x, take(sizeof(T)).data(), sizeof(T));
    return x;
  }
  template <class Enum>
  Enum one_of(int values) {
    const auto x = number<uint8_t>();
    SUPRA_CHECK(x < values, "a watchdog's message with {} of {} values", x, values);
    return static_cast<Enum>(x);
  }
  std::string_view text() { return take(number<uint8_t>()); }
  size_t left() const { return rest_.size(); }
  void expect_end() const {
    SUPRA_CHECK(rest_.empty(), "a watchdog's message with {} bytes too many", rest_.size());
  }

 private:
  std::string_view take(size_t bytes) {
    SUPRA_CHECK(bytes <= rest_.size(), "a watchdog's message that ends too early");
    const std::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return taken;
  }

  std::string_view rest_;
};

}  // namespace

std::string encode(const Hello& hello) {
  Writer w;
  for (const uint8_t byte : hello.token) w.number(byte);
  w.number(hello.rank);
  w.text(hello.host);
  return w.take();
}

Hello decode_hello(std::string_view content) {
  Reader r(content);
  Hello hello;
  for (uint8_t& byte : hello.token) byte = r.number<uint8_t>();
  hello.rank = r.number<int32_t>();
  hello.host = r.text();
  r.expect_end();
  return hello;
}

std::string encode(const FlightRecord& record) {
  Writer w;
  w.number(record.now);
  w.number(record.unix_time);
  w.text(record.activity);
  w.number(record.active_since);
  w.number(static_cast<uint8_t>(record.communicators.size()));
  for (const std::string& name : record.communicators) w.text(name);
  for (const Collective& c : record.collectives) {
    w.number(c.communicator);
    w.number(c.operation);
    w.number(c.state);
    w.number(c.sequence);
    w.number(c.bytes);
    w.number(c.begun);
    w.number(c.awaited);
    w.number(c.ended);
    w.text(c.what.data());
  }
  return w.take();
}

FlightRecord decode_record(std::string_view content) {
  Reader r(content);
  FlightRecord record;
  record.now = r.number<int64_t>();
  record.unix_time = r.number<double>();
  record.activity = r.text();
  record.active_since = r.number<int64_t>();
  record.communicators.resize(r.number<uint8_t>());
  for (std::string& name : record.communicators) name = r.text();
  std::array<uint64_t, UINT8_MAX + 1> last{};
  while (r.left() > 0) {
    Collective c;
    c.communicator = r.number<uint8_t>();
    c.operation = r.one_of<Operation>(operations);
    c.state = r.one_of<CollectiveState>(collective_states);
    c.sequence = r.number<uint64_t>();
    c.bytes = r.number<uint64_t>();
    c.begun = r.number<int64_t>();
    c.awaited = r.number<int64_t>();
    c.ended = r.number<int64_t>();
    const std::string_view what = r.text();
    what.copy(c.what.data(), c.what.size() - 1);
    SUPRA_CHECK(c.communicator < record.communicators.size(),
                "a watchdog's record of communicator {} of {}", c.communicator,
                record.communicators.size());
    uint64_t& before = last[c.communicator];
    SUPRA_CHECK(c.sequence > 0 && (before == 0 || c.sequence == before + 1),
                "a watchdog's record in which #{} follows #{}", c.sequence, before);
    before = c.sequence;
    record.collectives.push_back(c);
  }
  return record;
}

}  // namespace supra
