#include "tests/emulator/epochs.h"

#include <algorithm>

#include <fmt/format.h>

namespace emu {

Now now;
std::array<uint32_t, 256> known_ordered;

namespace {

struct Ran {
  uint32_t first_epoch;
  uint32_t name;
  int stream;
  size_t slot;
  uint32_t sequence;
};

struct History {
  uint32_t epoch = 0;
  std::vector<Ran> operations;
  std::vector<std::string> names;
  OperationPlace running;
};

History& history() {
  static auto& self = *new History;
  return self;
}

const Ran& operation_of(uint32_t epoch) {
  const auto& all = history().operations;
  return *std::prev(std::ranges::upper_bound(all, epoch, {}, &Ran::first_epoch));
}

std::string describe(const Ran& ran) {
  return fmt::format("{} (operation {} of stream {})", history().names[ran.name], ran.sequence,
                     ran.stream);
}

uint32_t name_index(const std::string& name) {
  auto& names = history().names;
  const auto found = std::ranges::find(names, name);
  if (found == names.end()) names.push_back(name);
  return static_cast<uint32_t>(std::ranges::find(names, name) - names.begin());
}

}  // namespace

void join(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

uint32_t next_epoch() {
  return ++history().epoch;
}

void begin_operation(const OperationPlace& place) {
  History& h = history();
  now.operation = next_epoch();
  now.block = now.epoch = now.operation;
  h.operations.push_back(
      {now.operation, name_index(place.name), place.stream, place.slot, place.sequence});
  h.running = place;
  known_ordered.fill(0);
}

bool find_ordered(uint32_t epoch) {
  const History& h = history();
  const Ran& ran = operation_of(epoch);
  const bool same = ran.slot == h.running.slot && ran.sequence == h.running.sequence;
  if (!same && !covers(h.running.before, ran.slot, ran.sequence)) return false;
  known_ordered[epoch % known_ordered.size()] = epoch;
  return true;
}

std::string describe_operation(uint32_t epoch) {
  return describe(operation_of(epoch));
}

std::string describe_running_operation() {
  return describe(history().operations.back());
}

}  // namespace emu
