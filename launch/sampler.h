#pragma once
// Which token comes next, drawn from the model's logits.

#include <cstdint>
#include <span>
#include <vector>

namespace supra {

/// Draws from softmax(logits / temperature), cut to the fewest tokens whose probability reaches
/// top_p; temperature 0 takes the likeliest. Of equally likely tokens those with the smaller id
/// count as likelier.
class Sampler {
 public:
  Sampler(double temperature, double top_p) : temperature_(temperature), top_p_(top_p) {}

  /// `uniform` in [0, 1) decides. Throws when a logit is not finite.
  int32_t operator()(std::span<const float> logits, double uniform);

 private:
  int32_t likeliest(size_t rank);

  double temperature_, top_p_;
  std::vector<double> weights_;  ///< probabilities times their total
  std::vector<int32_t> order_;   ///< the first `sorted_` are the likeliest, in order
  size_t sorted_ = 0;
};

}  // namespace supra
