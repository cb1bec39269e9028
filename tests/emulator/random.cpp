#include "tests/emulator/random.h"

#include <cstdlib>

#include "tests/emulator/emulator.h"

namespace emu {
namespace {

SchedulerSeed schedule_of(uint64_t seed) {
  return {seed, static_cast<StreamOrder>(seed % 3), seed / 3 % 2 == 0, seed / 6 % 2 == 1};
}

uint64_t first_seed() {
  const char* const seed = std::getenv("SUPRA_EMULATOR_SEED");
  return seed ? std::strtoull(seed, nullptr, 10) : 1;
}

uint64_t state;

}  // namespace

SchedulerSeed schedule;

void set_seed(uint64_t seed) {
  schedule = schedule_of(seed);
  state = seed;
}

namespace {
const bool is_seeded = (set_seed(first_seed()), true);
}  // namespace

bool SchedulerSeed::switches_warps() const {
  return !keeps_warp && one_in(8);
}

uint32_t random_below(uint32_t n) {
  // splitmix64
  state += 0x9e3779b97f4a7c15;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return static_cast<uint32_t>(((z ^ (z >> 31)) >> 32) * n >> 32);
}

}  // namespace emu
