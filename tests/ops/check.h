#pragma once
// Whether a device's results are right, with a tolerance that is derived and not picked.
//
// Expected values come from the reference in double, on the rounded inputs. What roundings can do
// to them is measured, not guessed: the reference runs again, several times, in Monte Carlo
// arithmetic (noise.h) on perturbed inputs. The change of a tensor over these runs gives its rms
// and its largest deviation; an ill-conditioned op, such as a norm of nearly nothing, shows by
// itself. A result is accepted when, in rms and in its largest element,
//
//     error <= (margin + sqrt(terms) u_fp32 / u) * deviation + u_result * expected value.
//
// The margin of 3 admits a device that rounds a value 9 times, independently, where the reference's
// arithmetic does once, and covers that the deviation is itself a sample. The root is for gradients
// only: the random walk of the fp32 sums over the `terms` outputs that an input reaches, which the
// reference, going forward from inputs to outputs, has no part in. The last term is the rounding of
// the result when it is stored.
//
// Gradients are those of L = sum over outputs of cotangent * output, by complex step: with the
// input moved by i*1e-50 along a direction, Im(L) / 1e-50 is the derivative along it, free of
// cancellation (Squire and Trapp 1998). Small calls are checked at every element of every gradient;
// large ones along random dense directions and at single elements drawn at random.

#include "tests/ops/op.h"

namespace supra::test {

struct Verdict {
  std::string what;  ///< "dq, along dense directions"
  double rms_error = 0, rms_allowed = 0;
  double max_error = 0, max_allowed = 0;

  /// NaN is never accepted.
  bool accepted() const { return rms_error <= rms_allowed && max_error <= max_allowed; }
  std::string to_string() const;
};

/// One verdict a tensor that the forward writes.
std::vector<Verdict> check_outputs(const Op& op, DType activation, const Values<double>& inputs,
                                   const Values<double>& results);

/// One or two verdicts a gradient.
std::vector<Verdict> check_gradients(const Op& op, DType activation, const Values<double>& inputs,
                                     const Values<double>& results);

/// L, and its derivative by complex step along a direction of one input.
double objective(const Op& op, const Values<double>& inputs);
double directional_derivative(const Op& op, const Values<double>& inputs, const std::string& tensor,
                              const std::vector<double>& direction);

}  // namespace supra::test
