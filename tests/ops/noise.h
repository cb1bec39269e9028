#pragma once
// Monte Carlo arithmetic (Parker 1997): a scalar whose products, quotients and functions each carry
// a random relative error as large as rounding to the working dtype makes, and whose sums carry one
// of fp32, which is how the ops compute: operands in the dtype, accumulation in fp32. A reference
// run on it several times shows how far roundings alone can move each of its results, with no
// analysis of the op by hand.

#include <bit>
#include <cmath>
#include <complex>
#include <cstdint>

#include "runtime/dtype.h"
#include "runtime/random.h"

namespace supra::test {

/// The largest relative error of rounding a number to `t`.
constexpr double unit_roundoff(DType t) {
  switch (t) {
    case DType::fp32:
      return 0x1p-24;
    case DType::bf16:
      return 0x1p-8;
    case DType::fp64:
      return 0x1p-53;
    case DType::int32:
      return 0;
  }
  return 0;
}

/// The root mean square of that error, which is uniform in +-unit_roundoff.
inline double rms_roundoff(DType t) {
  return unit_roundoff(t) / std::sqrt(3.0);
}

/// Where the errors of this thread's Noisy arithmetic come from.
struct NoiseSource {
  uint64_t state = 0;
  double product = 0;  ///< relative error of products
  /// And of sums: the worst of fp32, since a device adds in an order of its own.
  double sum = unit_roundoff(DType::fp32);

  /// 64 random bits, the upper ones the better (Knuth's MMIX generator).
  uint64_t draw() { return state = state * 6364136223846793005 + 1442695040888963407; }
};
inline thread_local NoiseSource noise;

/// x (1 +- unit), the sign taken from the uppermost bit.
inline double perturb(double x, double unit, uint64_t bits) {
  const uint64_t sign = bits & (uint64_t{1} << 63);
  return x + x * std::bit_cast<double>(std::bit_cast<uint64_t>(unit) ^ sign);
}
inline std::complex<double> perturb(const std::complex<double>& x, double unit, uint64_t bits) {
  return {perturb(x.real(), unit, bits), perturb(x.imag(), unit, bits << 1)};
}

/// T is double or complex<double>, whose imaginary part is the derivative in a complex step.
template <class T>
class Noisy {
 public:
  Noisy() = default;
  Noisy(double value)
      : value_(value) {}  // NOLINT(google-explicit-constructor): a constant is exact
  explicit Noisy(const std::complex<double>& value) requires(!std::is_same_v<T, double>)
      : value_(value) {}

  const T& value() const { return value_; }

  friend Noisy operator-(const Noisy& a) { return exact(-a.value_); }
  friend Noisy operator+(const Noisy& a, const Noisy& b) { return sum(a.value_ + b.value_); }
  friend Noisy operator-(const Noisy& a, const Noisy& b) { return sum(a.value_ - b.value_); }
  friend Noisy operator*(const Noisy& a, const Noisy& b) {
    return exact(multiply(a.value_, b.value_));
  }
  friend Noisy operator*(const Noisy& a, double b) { return product(a.value_ * b); }
  friend Noisy operator/(const Noisy& a, const Noisy& b) { return product(a.value_ / b.value_); }
  Noisy& operator+=(const Noisy& b) { return *this = *this + b; }
  Noisy& operator-=(const Noisy& b) { return *this = *this - b; }
  Noisy& operator/=(const Noisy& b) { return *this = *this / b; }

  friend Noisy exp(const Noisy& a) { return product(std::exp(a.value_)); }
  friend Noisy log(const Noisy& a) { return product(std::log(a.value_)); }
  friend Noisy sqrt(const Noisy& a) { return product(std::sqrt(a.value_)); }
  friend double real_part(const Noisy& a) { return std::real(a.value_); }

 private:
  static Noisy exact(const T& value) {
    Noisy result;
    result.value_ = value;
    return result;
  }
  static Noisy sum(const T& value) { return exact(perturb(value, noise.sum, noise.draw())); }
  static Noisy product(const T& value) {
    return exact(perturb(value, noise.product, noise.draw()));
  }

  static double multiply(double a, double b) { return perturb(a * b, noise.product, noise.draw()); }
  /// Both terms of the derivative of a product are products of their own.
  static std::complex<double> multiply(const std::complex<double>& a,
                                       const std::complex<double>& b) {
    const uint64_t bits = noise.draw();
    return {perturb(a.real() * b.real(), noise.product, bits),
            perturb(a.real() * b.imag(), noise.product, bits << 1) +
                perturb(a.imag() * b.real(), noise.product, bits << 2)};
  }

  T value_{};
};

}  // namespace supra::test
