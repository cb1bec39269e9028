#pragma once
// One op, one description. An Op lists the tensors of one call with what each is for, how the
// device is called, and the reference it must equal. Correctness, gradients, aliasing, determinism
// (tests/unit/test_ops.cpp), timing (launch/bench/ops.cpp) and running on files
// (tests/op_runner.cpp) all follow from it. To add an op, add one file in this folder that ends
// with a `Registered` OpFamily.

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/device.h"
#include "runtime/random.h"
#include "tests/ops/noise.h"
#include "tests/reference/array.h"

namespace supra::test {

template <class S>
using Values = std::map<std::string, reference::Array<S>>;

enum class Role : uint8_t {
  input,
  in_out,     ///< an input that the forward replaces by an output
  output,     ///< of the forward
  scratch,    ///< of the device only; what the forward leaves is there for the backward
  cotangent,  ///< dL/d(`of`), the backward's input
  gradient,   ///< dL/d(`of`), the backward's output
};

/// The dtype of a tensor: fixed, or the activation dtype A of the call.
enum class Element : uint8_t { activation, fp32, bf16, fp64, int32 };

/// Element i of an input, from the stream of its tensor.
using Draw = std::function<double(const RandomStream&, int64_t i)>;

Draw normal(double sigma = 1);
/// max(0, normal): what follows a relu, half of it exactly zero.
Draw rectified();
Draw uniform(double low, double high);
/// Integers in [0, below); a share of them, at random, is -1.
Draw indices(int64_t below, double ignored = 0);
/// The same numbers whatever the seed: slopes, rotary tables.
Draw table(std::vector<float> values);

struct TensorSpec {
  std::string name = {};
  Shape shape = {};
  Role role = Role::input;
  Element element = Element::activation;
  Draw draw = {};         ///< of inputs, in_outs and cotangents
  std::string of = {};    ///< what a cotangent or gradient belongs to
  bool added = false;     ///< a gradient that the op adds to its tensor
  bool computed = false;  ///< an input that follows from the others; op_runner does not look for it
  bool for_backward = false;  ///< an output that the backward needs; op_runner does not write it
  bool exponent = false;      ///< an input of which only exp is used: absolute errors count
  int64_t below = 0;          ///< of int32 inputs: indices are in [-1, below)
  double touched = 1;         ///< the share of its elements that the op reads or writes
};

/// The reference, callable with each scalar type. Built from one generic callable,
/// `[]<class S>(const Values<S>& in) -> Values<S>`, that returns every output by name.
class Reference {
 public:
  Reference() = default;
  template <class F>
  explicit(false) Reference(F f) : real_(f), complex_(f), noisy_(f), noisy_complex_(f) {}

  using Complex = std::complex<double>;
  Values<double> operator()(const Values<double>& in) const { return real_(in); }
  Values<Complex> operator()(const Values<Complex>& in) const { return complex_(in); }
  Values<Noisy<double>> operator()(const Values<Noisy<double>>& in) const { return noisy_(in); }
  Values<Noisy<Complex>> operator()(const Values<Noisy<Complex>>& in) const {
    return noisy_complex_(in);
  }

 private:
  template <class S>
  using Function = std::function<Values<S>(const Values<S>&)>;
  Function<double> real_;
  Function<Complex> complex_;
  Function<Noisy<double>> noisy_;
  Function<Noisy<Complex>> noisy_complex_;
};

/// The input of that name, or an empty array.
template <class S>
reference::Array<S> find(const Values<S>& values, const std::string& name) {
  const auto found = values.find(name);
  return found == values.end() ? reference::Array<S>() : found->second;
}

/// The tensors of one call on the device; one that the call does not have is empty.
class Tensors {
 public:
  Tensor operator[](const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? Tensor() : found->second;
  }
  void set(const std::string& name, const Tensor& tensor) { tensors_[name] = tensor; }

 private:
  std::map<std::string, Tensor> tensors_;
};

struct Op {
  using Call = std::function<void(Device&, const Tensors&)>;

  std::string name;   ///< "linear_attention"
  std::string sizes;  ///< this call's, for people: "B 2 T 65 H 9 d 64"
  std::vector<TensorSpec> tensors;
  Call forward;
  Call backward;  ///< empty: the op has none
  Reference reference;
  /// The reference's result that gradients differentiate; empty: the sum of outputs times
  /// cotangents.
  std::string objective;
  double forward_flops = 0, backward_flops = 0;
  /// Pairs (output, input) that ops.h allows to be the same memory.
  std::vector<std::pair<std::string, std::string>> aliases;

  const TensorSpec& tensor(const std::string& tensor_name) const;
  bool has(const std::string& tensor_name) const;
  /// Takes tensors of that name out of the call.
  void remove(const std::string& tensor_name);
  /// The same call with nothing but its forward.
  Op forward_only() const;
};

DType dtype_of(Element element, DType activation);

/// The nearest number of that dtype.
double round_to(DType dtype, double value);

/// Every input, drawn afresh from the seed and rounded to its dtype; for an `added` gradient, what
/// is in its tensor before.
Values<double> draw_inputs(const Op& op, DType activation, uint64_t seed);

class OpInput;

struct OpFamily {
  std::string name;
  std::vector<Op> (*test_cases)();
  std::vector<Op> (*bench_cases)();
  /// The call that an op_runner input file describes; null when op_runner does not offer the op.
  Op (*from_input)(const OpInput&) = nullptr;
};

/// All families, in name order.
const std::vector<OpFamily>& op_families();

/// Puts a family on the list, from a namespace-scope constant of its own file.
struct Registered {
  explicit Registered(OpFamily family);
};

}  // namespace supra::test
