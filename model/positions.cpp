#include "model/positions.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

namespace supra {
namespace {

/// r^(h+1) with r = 2^(-8/H), H a power of two.
std::vector<double> geometric_slopes(int64_t heads) {
  std::vector<double> s(static_cast<size_t>(heads));
  for (size_t h = 0; h < s.size(); ++h) {
    s[h] = std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads));
  }
  return s;
}

double inv_freq(const RopeConfig& c, int64_t head_width, int64_t i) {
  double f = std::pow(c.base, -2.0 * static_cast<double>(i) / static_cast<double>(head_width));
  if (c.llama3_factor > 0) {
    // Llama 3.1: long waves are interpolated, short ones kept, those between blended.
    const double wavelength = 2 * std::numbers::pi / f;
    const double turns = static_cast<double>(c.llama3_original_positions) / wavelength;
    const double kept = std::clamp(
        (turns - c.llama3_low_freq_factor) / (c.llama3_high_freq_factor - c.llama3_low_freq_factor),
        0.0, 1.0);
    f = kept * f + (1 - kept) * f / c.llama3_factor;
  }
  f /= c.scale;
  return c.inv_freq == InvFreqRounding::bf16 ? float(bf16(static_cast<float>(f))) : f;
}

}  // namespace

std::vector<float> decay_slopes(Slopes kind, int64_t heads) {
  std::vector<float> s(static_cast<size_t>(heads), 0.0F);
  if (kind == Slopes::lightning) {
    const auto floor = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
    const auto lower = geometric_slopes(floor);
    const auto upper = geometric_slopes(2 * floor);
    for (size_t h = 0; h < s.size(); ++h) {
      const size_t beyond = 2 * (h - lower.size());
      s[h] = static_cast<float>(h < lower.size() ? lower[h] : upper[beyond]);
    }
  } else if (kind == Slopes::retnet) {
    for (size_t h = 0; h < s.size(); ++h) {
      s[h] = static_cast<float>(-std::log1p(-std::exp2(-5.0 - static_cast<double>(h))));
    }
  }
  return s;
}

RopeTables rope_tables(const RopeConfig& config, int64_t head_width, int64_t count, int64_t first) {
  const int64_t half = head_width / 2;
  RopeTables t;
  t.cos.resize(static_cast<size_t>(count * half));
  t.sin.resize(t.cos.size());
  for (int64_t i = 0; i < half; ++i) {
    const double f = inv_freq(config, head_width, i);
    for (int64_t p = 0; p < count; ++p) {
      const double angle = static_cast<double>(first + p) * f;
      t.cos[static_cast<size_t>(p * half + i)] = static_cast<float>(std::cos(angle));
      t.sin[static_cast<size_t>(p * half + i)] = static_cast<float>(std::sin(angle));
    }
  }
  return t;
}

}  // namespace supra
