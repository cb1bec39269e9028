#pragma once
// The references' arrays and the little arithmetic they share. A reference is the mathematics of an
// op in its most obvious form, a template over the scalar type: double gives values,
// complex<double> gives derivatives by complex step. Comparisons look at the real part, which makes
// them transparent to both.

#include <cmath>
#include <complex>
#include <span>
#include <vector>

#include "runtime/tensor.h"

namespace supra::reference {

/// A dense row-major array that owns its elements. An empty one stands for "not given".
template <class S>
struct Array {
  Shape shape;
  std::vector<S> values;

  Array() = default;
  explicit Array(Shape s) : shape(s), values(static_cast<size_t>(s.numel())) {}

  bool empty() const { return values.empty(); }
  int64_t size(int dimension) const { return shape[dimension]; }
  int64_t numel() const { return static_cast<int64_t>(values.size()); }

  /// One element, by all its indices.
  template <class... Index>
  const S& operator()(Index... index) const {
    return values[offset(index...)];
  }
  template <class... Index>
  S& operator()(Index... index) {
    return values[offset(index...)];
  }
  /// The elements below the leading indices: `x.row(b, t, h)` is the head's vector of [B, T, H, d].
  template <class... Index>
  std::span<const S> row(Index... index) const {
    const size_t n = row_size(sizeof...(index));
    return {values.data() + offset(index...) * n, n};
  }
  template <class... Index>
  std::span<S> row(Index... index) {
    const size_t n = row_size(sizeof...(index));
    return {values.data() + offset(index...) * n, n};
  }

 private:
  template <class... Index>
  size_t offset(Index... index) const {
    int64_t position = 0;
    int dimension = 0;
    ((position = position * shape[dimension++] + static_cast<int64_t>(index)), ...);
    return static_cast<size_t>(position);
  }
  size_t row_size(size_t leading) const {
    size_t n = 1;
    for (int i = static_cast<int>(leading); i < shape.rank(); ++i) {
      n *= static_cast<size_t>(shape[i]);
    }
    return n;
  }
};

inline double real_part(double x) {
  return x;
}
inline double real_part(const std::complex<double>& x) {
  return x.real();
}

/// Constants of an op, such as slopes, tables and indices, of which nobody takes a derivative.
template <class S>
Array<double> real_array(const Array<S>& x) {
  Array<double> real;
  real.shape = x.shape;
  for (const S& value : x.values) real.values.push_back(real_part(value));
  return real;
}

template <class S>
S dot(std::span<const S> a, std::span<const S> b) {
  S sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

template <class S>
S relu(const S& x) {
  return real_part(x) > 0 ? x : S(0.0);
}

/// log(sum(exp(x))), shifted by the largest real part, which changes nothing but the range.
template <class S>
S log_sum_exp(std::span<const S> x) {
  using std::exp;
  using std::log;
  double largest = real_part(x[0]);
  for (const S& value : x) largest = std::max(largest, real_part(value));
  S sum = 0.0;
  for (const S& value : x) sum += exp(value - largest);
  return log(sum) + largest;
}

}  // namespace supra::reference
