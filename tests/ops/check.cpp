#include "tests/ops/check.h"

#include <algorithm>

namespace supra::test {
namespace {

using Complex = std::complex<double>;
using Vector = std::vector<double>;

constexpr double margin = 3;
constexpr double complex_step = 1e-50;
constexpr int64_t every_element_up_to = 1000;  // elements of all gradients together
constexpr int dense_directions = 2;
constexpr int single_elements = 2;
constexpr int64_t noise_runs = 2;
constexpr int64_t noise_values = 64;  // at least as many make the deviation of an output

double rms(const Vector& x) {
  double sum = 0;
  for (double value : x) sum += value * value;
  return std::sqrt(sum / static_cast<double>(std::max<size_t>(1, x.size())));
}

/// Keeps a NaN, which std::max would lose.
double largest(const Vector& x) {
  double result = 0;
  for (double value : x) {
    if (!(std::abs(value) <= result)) result = std::abs(value);
    if (std::isnan(value)) break;
  }
  return result;
}

Vector difference(const Vector& a, const Vector& b) {
  Vector result(a.size());
  for (size_t i = 0; i < a.size(); ++i) result[i] = a[i] - b[i];
  return result;
}

/// `noisy`: what the reference gave in Monte Carlo arithmetic, run by run; `roundings`: how many
/// times its deviation is allowed. `unit`: the unit roundoff of the result. `before`: what the
/// result was added to, and is rounded with, each time that a device adds a part of the result to
/// it.
Verdict judge(std::string what, const Vector& actual, const Vector& expected,
              const std::vector<Vector>& noisy, double roundings, double unit,
              const Vector& before = {}) {
  Vector deviation;
  for (const Vector& sample : noisy) {
    const Vector change = difference(sample, expected);
    deviation.insert(deviation.end(), change.begin(), change.end());
  }
  const Vector error = difference(actual, expected);
  const auto allowed = [&](const auto& size) {
    return roundings * size(deviation) + unit * size(expected) + margin * unit * size(before);
  };
  return {std::move(what), rms(error), allowed(rms), largest(error), allowed(largest)};
}

/// The dtype of the op's products: A if any of its inputs is of A.
DType product_dtype(const Op& op, DType activation) {
  const bool uses_activations =
      std::any_of(op.tensors.begin(), op.tensors.end(), [](const TensorSpec& t) {
        return t.role == Role::input && t.element == Element::activation;
      });
  return uses_activations ? activation : DType::fp32;
}

double unit_of(const TensorSpec& spec, DType activation) {
  return unit_roundoff(dtype_of(spec.element, activation));
}

template <class S>
Values<S> convert(const Values<double>& values) {
  Values<S> converted;
  for (const auto& [name, from] : values) {
    reference::Array<S>& to = converted[name];
    to.shape = from.shape;
    to.values.assign(from.values.begin(), from.values.end());
  }
  return converted;
}

/// Starts this thread's Monte Carlo arithmetic anew, and perturbs the inputs.
Values<double> perturb_inputs(const Op& op, DType activation, const Values<double>& inputs,
                              int64_t sample) {
  noise = {mix64(static_cast<uint64_t>(sample)), rms_roundoff(product_dtype(op, activation))};
  Values<double> perturbed = inputs;
  for (const TensorSpec& t : op.tensors) {
    const auto found = perturbed.find(t.name);
    if (found == perturbed.end()) continue;
    const double roundoff = rms_roundoff(dtype_of(t.element, activation));
    for (double& x : found->second.values) {
      const double change = perturb(1, roundoff, noise.draw()) - 1;
      x += t.exponent ? change : x * change;
    }
  }
  return perturbed;
}

double plain(double x) {
  return x;
}
Complex plain(const Complex& x) {
  return x;
}
template <class T>
T plain(const Noisy<T>& x) {
  return x.value();
}

/// L, and of how many terms its derivative is the sum. In Monte Carlo arithmetic those that cancel
/// to zero count too.
struct Objective {
  Complex value;
  int64_t terms = 0;
};

/// The op's objective, or the sum over outputs with a cotangent of cotangent * output.
template <class S>
Objective evaluate(const Op& op, const Values<S>& inputs) {
  const Values<S> outputs = op.reference(inputs);
  Objective sum;
  const auto add = [&](const Complex& term) {
    sum.value += term;
    if (term.imag() != 0) ++sum.terms;
  };
  if (!op.objective.empty()) {
    for (const S& value : outputs.at(op.objective).values) add(plain(value));
    return sum;
  }
  for (const TensorSpec& t : op.tensors) {
    if (t.role != Role::cotangent) continue;
    const std::vector<S>& cotangent = inputs.at(t.name).values;
    const std::vector<S>& output = outputs.at(t.of).values;
    for (size_t i = 0; i < output.size(); ++i) add(plain(cotangent[i]) * plain(output[i]));
  }
  return sum;
}

/// dL along a direction of one tensor: all of `dense`, or if that is empty the unit vector
/// `element`.
struct Direction {
  std::string tensor;
  Vector dense;
  int64_t element = 0;

  double project(const Vector& gradient) const {
    if (dense.empty()) return gradient[static_cast<size_t>(element)];
    double sum = 0;
    for (size_t i = 0; i < dense.size(); ++i) sum += dense[i] * gradient[i];
    return sum;
  }
};

struct Derivative {
  double value;
  int64_t terms;
};

template <class S>
Derivative derivative(const Op& op, const Values<double>& inputs, const Direction& direction) {
  Values<S> moved = convert<S>(inputs);
  std::vector<S>& x = moved.at(direction.tensor).values;
  const auto step = [&](int64_t i, double by) {
    x[static_cast<size_t>(i)] =
        S(Complex(plain(x[static_cast<size_t>(i)]).real(), complex_step * by));
  };
  if (direction.dense.empty()) step(direction.element, 1);
  for (size_t i = 0; i < direction.dense.size(); ++i) {
    step(static_cast<int64_t>(i), direction.dense[i]);
  }
  const Objective objective = evaluate(op, moved);
  return {objective.value.imag() / complex_step, objective.terms};
}

Vector dense_direction(int64_t size, const std::string& name) {
  const RandomStream random(0, name);
  const Draw draw = normal();
  Vector direction(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) direction[static_cast<size_t>(i)] = draw(random, i);
  const double norm = rms(direction) * std::sqrt(static_cast<double>(size));
  for (double& x : direction) x /= norm;
  return direction;
}

/// Judges a gradient along some directions. `terms` is the largest number of terms that make one of
/// its elements: returned for single elements, taken for dense directions.
Verdict check_along(const Op& op, DType activation, const Values<double>& inputs,
                    const Values<double>& results, const TensorSpec& gradient,
                    const std::vector<Direction>& directions, const std::string& what,
                    int64_t& terms) {
  const auto n = static_cast<int64_t>(directions.size());
  Vector actual(directions.size()), expected(directions.size());
  std::vector<int64_t> terms_along(directions.size());
  std::vector<Vector> noisy(noise_runs, Vector(directions.size()));
#pragma omp parallel for schedule(dynamic)
  for (int64_t job = 0; job < n * (1 + noise_runs); ++job) {
    const auto i = static_cast<size_t>(job % n);
    const int64_t sample = job / n - 1;
    if (sample < 0) {
      expected[i] = derivative<Complex>(op, inputs, directions[i]).value;
      actual[i] = directions[i].project(results.at(gradient.name).values);
    } else {
      const Values<double> perturbed = perturb_inputs(op, activation, inputs, job);
      const Derivative rounded = derivative<Noisy<Complex>>(op, perturbed, directions[i]);
      noisy[static_cast<size_t>(sample)][i] = rounded.value;
      if (sample == 0) terms_along[i] = rounded.terms;
    }
  }
  if (directions[0].dense.empty()) {
    terms = *std::max_element(terms_along.begin(), terms_along.end());
  }
  const double sums = std::sqrt(static_cast<double>(terms)) * unit_roundoff(DType::fp32) /
                      unit_roundoff(product_dtype(op, activation));
  return judge(gradient.name + what, actual, expected, noisy, margin + sums,
               unit_of(gradient, activation),
               gradient.added ? inputs.at(gradient.name).values : Vector());
}

}  // namespace

std::string Verdict::to_string() const {
  return fmt::format("{}: rms error {:.3g} of {:.3g} allowed, largest {:.3g} of {:.3g} allowed",
                     what, rms_error, rms_allowed, max_error, max_allowed);
}

std::vector<Verdict> check_outputs(const Op& op, DType activation, const Values<double>& inputs,
                                   const Values<double>& results) {
  std::vector<const TensorSpec*> outputs;
  int64_t smallest = noise_values;
  for (const TensorSpec& t : op.tensors) {
    if (t.role != Role::output && t.role != Role::in_out) continue;
    outputs.push_back(&t);
    smallest = std::min(smallest, t.shape.numel());
  }
  const int64_t runs = std::max(noise_runs, noise_values / std::max<int64_t>(1, smallest));
  const Values<double> expected = op.reference(inputs);
  std::vector<Values<Noisy<double>>> noisy(static_cast<size_t>(runs));
#pragma omp parallel for schedule(dynamic)
  for (int64_t sample = 0; sample < runs; ++sample) {
    noisy[static_cast<size_t>(sample)] =
        op.reference(convert<Noisy<double>>(perturb_inputs(op, activation, inputs, sample)));
  }
  std::vector<Verdict> verdicts;
  for (const TensorSpec* t : outputs) {
    std::vector<Vector> samples;
    for (const Values<Noisy<double>>& values : noisy) {
      Vector& sample = samples.emplace_back();
      for (const Noisy<double>& x : values.at(t->name).values) sample.push_back(x.value());
    }
    verdicts.push_back(judge(t->name, results.at(t->name).values, expected.at(t->name).values,
                             samples, margin, unit_of(*t, activation)));
  }
  return verdicts;
}

std::vector<Verdict> check_gradients(const Op& op, DType activation, const Values<double>& inputs,
                                     const Values<double>& results) {
  int64_t elements = 0;
  for (const TensorSpec& t : op.tensors) {
    if (t.role == Role::gradient) elements += t.shape.numel();
  }
  std::vector<Verdict> verdicts;
  for (const TensorSpec& t : op.tensors) {
    if (t.role != Role::gradient) continue;
    const int64_t n = t.shape.numel();
    const bool every_element = elements <= every_element_up_to;
    const Draw draw = indices(n);
    std::vector<Direction> single, dense;
    for (int64_t i = 0; i < (every_element ? n : single_elements); ++i) {
      const double drawn = draw(RandomStream(0, t.name), i);
      single.push_back({t.of, {}, every_element ? i : static_cast<int64_t>(drawn)});
    }
    for (int i = 0; i < dense_directions; ++i) {
      dense.push_back({t.of, dense_direction(n, fmt::format("{} {}", t.name, i))});
    }
    int64_t terms = 0;
    const auto check = [&](const std::vector<Direction>& directions, const char* what) {
      verdicts.push_back(check_along(op, activation, inputs, results, t, directions, what, terms));
    };
    check(single, every_element ? ", at every element" : ", at single elements");
    if (!every_element) check(dense, ", along dense directions");
  }
  return verdicts;
}

double objective(const Op& op, const Values<double>& inputs) {
  return evaluate(op, inputs).value.real();
}

double directional_derivative(const Op& op, const Values<double>& inputs, const std::string& tensor,
                              const std::vector<double>& direction) {
  return derivative<Complex>(op, inputs, {tensor, direction}).value;
}

}  // namespace supra::test
