#pragma once
// Decay slopes and rotary tables from their definitions, in double.

#include <bit>
#include <cmath>

#include "model/config.h"
#include "runtime/dtype.h"
#include "tests/reference/array.h"

namespace supra::reference {

/// s_h of each head. Lightning: r = 2^(-2^(-(log2 H - 3))), s_h = r^(h+1); an H that is no power of
/// two takes those of the power below, then every other one of twice that power. RetNet: -ln(1 -
/// 2^(-5-h)).
inline std::vector<double> decay_slopes(Slopes kind, int64_t heads) {
  std::vector<double> slopes;
  if (kind == Slopes::none) return std::vector<double>(static_cast<size_t>(heads), 0.0);
  if (kind == Slopes::retnet) {
    for (int64_t h = 0; h < heads; ++h) {
      slopes.push_back(-std::log1p(-std::exp2(-5.0 - static_cast<double>(h))));
    }
    return slopes;
  }
  const auto lightning = [](int64_t of, int64_t h) {
    const double r = std::exp2(-std::exp2(-(std::log2(static_cast<double>(of)) - 3)));
    return std::pow(r, static_cast<double>(h + 1));
  };
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  for (int64_t h = 0; h < power; ++h) slopes.push_back(lightning(power, h));
  for (int64_t h = 0; h < heads - power; ++h) slopes.push_back(lightning(2 * power, 2 * h));
  return slopes;
}

template <class S>
struct RopeTables {
  Array<S> cos, sin;  ///< [positions, d/2]
};

/// The angle of position t and pair i is t * inv_freq_i, inv_freq_i = 1 / (scale * base^(2i/d)),
/// which the released training rounded to bf16.
inline RopeTables<double> rope_tables(double base, double scale, InvFreqRounding rounding,
                                      int64_t head_width, int64_t positions) {
  const int64_t half = head_width / 2;
  RopeTables<double> tables{Array<double>({positions, half}), Array<double>({positions, half})};
  for (int64_t t = 0; t < positions; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(head_width);
      double inv_freq = 1.0 / (scale * std::pow(base, exponent));
      if (rounding == InvFreqRounding::bf16) inv_freq = bf16(static_cast<float>(inv_freq));
      tables.cos(t, i) = std::cos(static_cast<double>(t) * inv_freq);
      tables.sin(t, i) = std::sin(static_cast<double>(t) * inv_freq);
    }
  }
  return tables;
}

/// Rotates every head of x [B, T, H, d] in the half-split layout: pair i is (x_i, x_{i + d/2}).
/// Token t stands at position `first` + t. Empty tables: no rotation.
template <class S>
Array<S> rotate(const Array<S>& x, const RopeTables<double>& tables, int64_t first = 0) {
  if (tables.cos.empty()) return x;
  Array<S> rotated(x.shape);
  const int64_t half = x.size(3) / 2;
  for (int64_t b = 0; b < x.size(0); ++b) {
    for (int64_t t = 0; t < x.size(1); ++t) {
      for (int64_t h = 0; h < x.size(2); ++h) {
        for (int64_t i = 0; i < half; ++i) {
          const double c = tables.cos(first + t, i);
          const double s = tables.sin(first + t, i);
          const S& u = x(b, t, h, i);
          const S& w = x(b, t, h, i + half);
          rotated(b, t, h, i) = u * c - w * s;
          rotated(b, t, h, i + half) = w * c + u * s;
        }
      }
    }
  }
  return rotated;
}

}  // namespace supra::reference
