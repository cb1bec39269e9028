// The model against its reference: the loss, and the gradient of every parameter along directions
// in which the complex step differentiates the reference. Allowed errors come from Monte Carlo
// arithmetic, as in tests/ops/check.h, so the same test serves fp32 and mixed precision.

#include <algorithm>

#include <doctest/doctest.h>

#include "tests/reference/model.h"
#include "tests/unit/small_model.h"

using namespace supra;
using namespace supra::test;

namespace {

using Complex = std::complex<double>;
using reference::Array;
using reference::Weights;

constexpr double z_loss = 0.01;
constexpr double complex_step = 1e-50;
constexpr double margin = 4;  // see tests/ops/check.h
constexpr int noise_runs = 3;

struct Case {
  std::string name;
  ModelConfig config;
  int64_t batch = 2, tokens = 9;
};

Case make_case(std::string name, Attention attention,
               const std::function<void(ModelConfig&)>& change) {
  Case c{std::move(name), small_model(attention)};
  change(c.config);
  return c;
}

/// Between them, every value of every option, in each attention that it concerns.
std::vector<Case> cases() {
  using enum Attention;
  std::vector<Case> all{
      make_case("softmax, MHA", softmax, [](ModelConfig& c) { c.kv_heads = 4; }),
      make_case("softmax, GQA, window, tied", softmax,
                [](ModelConfig& c) {
                  c.family = "mistral";
                  c.window = 3;
                  c.tied_head = true;
                }),
      make_case("softmax, MQA, Llama 3's RoPE", softmax,
                [](ModelConfig& c) {
                  c.kv_heads = 1;
                  c.rope.base = 100;
                  c.rope.llama3_factor = 8;
                  c.rope.llama3_original_positions = 40;
                }),
      make_case("linear, GQA", linear, [](ModelConfig&) {}),
      make_case("linear, MHA, retnet, denominator, tied", linear,
                [](ModelConfig& c) {
                  c.kv_heads = 4;
                  c.linear.slopes = Slopes::retnet;
                  c.linear.normalization = Normalization::denominator;
                  c.linear.eps = 0.3;
                  c.tied_head = true;
                }),
      make_case("linear, GQA, per_head, no decay, q/k norm", linear,
                [](ModelConfig& c) {
                  c.linear.feature_map = FeatureMap::per_head;
                  c.linear.slopes = Slopes::none;
                  c.linear.qk_norm = true;
                }),
      make_case("linear, MHA, per_head, unnormalised, scaled RoPE", linear,
                [](ModelConfig& c) {
                  c.kv_heads = 4;
                  c.linear.feature_map = FeatureMap::per_head;
                  c.linear.normalization = Normalization::none;
                  c.rope.scale = 4;
                }),
      make_case("linear, MQA, denominator, q/k norm, bf16 frequencies", linear,
                [](ModelConfig& c) {
                  c.kv_heads = 1;
                  c.linear.normalization = Normalization::denominator;
                  c.linear.eps = 0.3;
                  c.linear.qk_norm = true;
                  c.rope.base = 1e6;
                  c.rope.inv_freq = InvFreqRounding::bf16;
                }),
      make_case("linear, MHA, q/k norm, three heads", linear,
                [](ModelConfig& c) {
                  c.heads = c.kv_heads = 3;
                  c.linear.qk_norm = true;
                }),
  };
  Case longer = make_case("softmax, longer than a tile", softmax, [](ModelConfig& c) {
    c.layers = 1;
    c.window = 40;
  });
  longer.tokens = 67;
  longer.batch = 1;
  all.push_back(longer);
  longer.name = "linear, longer than a chunk";
  longer.config.attention = linear;
  all.push_back(longer);
  return all;
}

Array<double> to_array(const std::vector<int32_t>& ids) {
  Array<double> a({static_cast<int64_t>(ids.size())});
  a.values.assign(ids.begin(), ids.end());
  return a;
}

/// The loss of a batch as a function of weights in any scalar type.
class LossFunction {
 public:
  LossFunction(const Case& c, DType dtype, const SmallBatch& batch)
      : config_(c.config),
        dtype_(dtype),
        inputs_(to_array(batch.inputs)),
        targets_(to_array(batch.targets)),
        batch_(batch.batch),
        predicted_(static_cast<double>(batch.predicted)) {
    for (const UnitSpec& unit : describe_parameters(config_)) {
      for (const ParameterSpec& p : unit.parameters) {
        Array<double>& a = weights_[p.name] = Array<double>(p.shape);
        for (int64_t i = 0; i < a.numel(); ++i) {
          a.values[static_cast<size_t>(i)] = round_to(dtype, small_weight(p, i));
        }
      }
    }
  }

  double value() const { return evaluate(weights_); }
  /// In Monte Carlo arithmetic, from perturbed weights.
  double noisy_value(uint64_t sample) const {
    return evaluate(perturbed<Noisy<double>>(sample)).value();
  }
  double derivative(const std::string& name, const std::vector<double>& direction) const {
    Weights<Complex> w = converted<Complex>(weights_);
    move(w.at(name), direction);
    return evaluate(w).imag() / complex_step;
  }
  double noisy_derivative(const std::string& name, const std::vector<double>& direction,
                          uint64_t sample) const {
    Weights<Noisy<Complex>> w = perturbed<Noisy<Complex>>(sample);
    move(w.at(name), direction);
    return evaluate(w).value().imag() / complex_step;
  }

 private:
  template <class S>
  S evaluate(const Weights<S>& w) const {
    return reference::model_loss(config_, w, inputs_, targets_, batch_, z_loss) / predicted_;
  }
  template <class S>
  static Weights<S> converted(const Weights<double>& from) {
    Weights<S> to;
    for (const auto& [name, array] : from) {
      to[name].shape = array.shape;
      to[name].values.assign(array.values.begin(), array.values.end());
    }
    return to;
  }
  template <class S>
  Weights<S> perturbed(uint64_t sample) const {
    noise = {mix64(sample), rms_roundoff(dtype_)};
    Weights<double> w = weights_;
    for (auto& [name, array] : w) {
      for (double& x : array.values) x = perturb(x, noise.product, noise.draw());
    }
    return converted<S>(w);
  }
  static Complex plain(const Complex& x) { return x; }
  static Complex plain(const Noisy<Complex>& x) { return x.value(); }
  template <class S>
  static void move(Array<S>& array, const std::vector<double>& direction) {
    for (size_t i = 0; i < direction.size(); ++i) {
      S& x = array.values[i];
      x = S(Complex(plain(x).real(), complex_step * direction[i]));
    }
  }

  ModelConfig config_;
  DType dtype_;
  Weights<double> weights_;
  Array<double> inputs_, targets_;
  int64_t batch_;
  double predicted_;
};

/// Unit vectors: two that are dense, and three of the axes.
std::vector<std::vector<double>> directions(const ParameterSpec& p) {
  const auto size = static_cast<size_t>(p.shape.numel());
  const Draw draw = normal(), axis = indices(p.shape.numel());
  std::vector<std::vector<double>> all;
  for (int k = 0; k < 5; ++k) {
    std::vector<double> direction(size);
    const RandomStream random(static_cast<uint64_t>(k), p.name);
    if (k < 2) {
      double squares = 0;
      for (size_t i = 0; i < size; ++i) {
        direction[i] = draw(random, static_cast<int64_t>(i));
        squares += direction[i] * direction[i];
      }
      for (double& x : direction) x /= std::sqrt(squares);
    } else {
      direction[static_cast<size_t>(axis(random, 0))] = 1;
    }
    all.push_back(std::move(direction));
  }
  return all;
}

double project(const std::vector<float>& gradient, const std::vector<double>& direction) {
  double sum = 0;
  for (size_t i = 0; i < direction.size(); ++i) sum += double{gradient[i]} * direction[i];
  return sum;
}

/// How far the model's gradient of one parameter is from the reference's, as a share of what
/// roundings may do.
double gradient_error(const LossFunction& loss, const ParameterSpec& p,
                      const std::vector<float>& gradient) {
  const auto along = directions(p);
  const auto n = static_cast<int>(along.size());
  std::vector<double> expected(along.size());
  std::vector<std::vector<double>> noisy(noise_runs, std::vector<double>(along.size()));
#pragma omp parallel for schedule(dynamic)
  for (int job = 0; job < n * (1 + noise_runs); ++job) {
    const auto i = static_cast<size_t>(job % n);
    if (job < n) {
      expected[i] = loss.derivative(p.name, along[i]);
    } else {
      noisy[static_cast<size_t>(job / n - 1)][i] =
          loss.noisy_derivative(p.name, along[i], static_cast<uint64_t>(job));
    }
  }
  double error = 0, deviation = 0, size = 0;
  for (size_t i = 0; i < along.size(); ++i) {
    error += std::pow(project(gradient, along[i]) - expected[i], 2);
    size += std::pow(expected[i], 2);
    for (const auto& run : noisy) deviation += std::pow(run[i] - expected[i], 2) / noise_runs;
  }
  return std::sqrt(error) / (margin * std::sqrt(deviation) + 0x1p-24 * std::sqrt(size));
}

double loss_error(const LossFunction& loss, double actual) {
  constexpr uint64_t runs = 16;
  const double expected = loss.value();
  double deviation = 0;
  for (uint64_t sample = 0; sample < runs; ++sample) {
    deviation += std::pow(loss.noisy_value(sample) - expected, 2) / runs;
  }
  return std::abs(actual - expected) / (margin * std::sqrt(deviation) + 0x1p-24 * expected);
}

EngineOptions options_for(const Case& c, DType dtype, bool recompute = false,
                          Trained trained = Trained::all) {
  EngineOptions o;
  o.model = {.dtype = dtype, .recompute_blocks = recompute, .batch = c.batch, .tokens = c.tokens};
  o.trained = trained;
  o.z_loss = z_loss;
  return o;
}

double mean_loss(const LossSums& sums, const SmallBatch& batch) {
  return (sums.nll + z_loss * sums.squared_lse) / static_cast<double>(batch.predicted);
}

void check_against_reference(const Case& c, DType dtype) {
  CAPTURE(c.name);
  CAPTURE(name_of(dtype));
  const SmallBatch batch(c.config, c.batch, c.tokens);
  const LossFunction loss(c, dtype, batch);
  SmallEngine run(c.config, options_for(c, dtype));
  run.accumulate_gradients(batch, z_loss);
  CHECK(loss_error(loss, mean_loss(run.engine.take_losses(), batch)) <= 1);
  const std::vector<UnitSpec>& units = run.parameters().units();
  for (size_t u = 0; u < units.size(); ++u) {
    const auto gradients = run.parameters().gradients(static_cast<int>(u));
    for (size_t i = 0; i < gradients.size(); ++i) {
      CAPTURE(units[u].parameters[i].name);
      CHECK(gradient_error(loss, units[u].parameters[i],
                           download<float>(*run.device, gradients[i])) <= 1);
    }
  }
}

bool same_bits(SmallEngine& x, const Tensor& a, SmallEngine& y, const Tensor& b) {
  return a.shape() == b.shape() && download_bytes(*x.device, a) == download_bytes(*y.device, b);
}

bool same_gradients(SmallEngine& x, SmallEngine& y) {
  for (size_t u = 0; u < x.parameters().units().size(); ++u) {
    const auto a = x.parameters().gradients(static_cast<int>(u));
    const auto b = y.parameters().gradients(static_cast<int>(u));
    for (size_t i = 0; i < a.size(); ++i) {
      if (!same_bits(x, a[i], y, b[i])) return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE("model: loss and every gradient are the reference's, in fp32") {
  for (const Case& c : cases()) check_against_reference(c, DType::fp32);
}

TEST_CASE("model: loss and every gradient are the reference's, in mixed precision") {
  for (const Case& c : cases()) check_against_reference(c, DType::bf16);
}

TEST_CASE("model: evaluation gives the loss of training, and the loss of every token") {
  for (const Case& c : cases()) {
    CAPTURE(c.name);
    const SmallBatch batch(c.config, c.batch, c.tokens);
    SmallEngine run(c.config, options_for(c, DType::fp32));
    run.accumulate_gradients(batch, z_loss);
    const LossSums training = run.engine.take_losses();
    std::vector<float> nll(batch.inputs.size(), NAN);
    run.engine.model().evaluate(batch.inputs.data(), batch.targets.data(), nll.data());
    const LossSums evaluation = run.engine.take_losses();
    CHECK(evaluation.nll == training.nll);
    CHECK(evaluation.squared_lse == training.squared_lse);
    double sum = 0;
    for (size_t i = 0; i < nll.size(); ++i) {
      sum += double{nll[i]};
      if (batch.targets[i] < 0) CHECK(nll[i] == 0);
    }
    CHECK(sum == doctest::Approx(evaluation.nll).epsilon(1e-12));
  }
}

TEST_CASE("model: recomputing blocks changes no bit of a gradient") {
  for (const Case& c : cases()) {
    for (const DType dtype : {DType::fp32, DType::bf16}) {
      CAPTURE(c.name);
      const SmallBatch batch(c.config, c.batch, c.tokens);
      SmallEngine kept(c.config, options_for(c, dtype));
      SmallEngine recomputed(c.config, options_for(c, dtype, true));
      if (c.config.layers > 1) CHECK(recomputed.plan.bytes < kept.plan.bytes);
      kept.accumulate_gradients(batch, z_loss);
      recomputed.accumulate_gradients(batch, z_loss);
      CHECK(same_gradients(kept, recomputed));
    }
  }
}

TEST_CASE("model: the number of threads changes no bit of a gradient") {
  for (const Case& c : cases()) {
    CAPTURE(c.name);
    const SmallBatch batch(c.config, c.batch, c.tokens);
    SmallEngine one(c.config, options_for(c, DType::fp32));
    SmallEngine three(c.config, options_for(c, DType::fp32), nullptr, 3);
    one.accumulate_gradients(batch, z_loss);
    three.accumulate_gradients(batch, z_loss);
    CHECK(same_gradients(one, three));
  }
}

TEST_CASE("model: with the base frozen, the new weights have the gradients they had before") {
  for (const Case& c : cases()) {
    if (c.config.attention == Attention::softmax) continue;
    CAPTURE(c.name);
    const SmallBatch batch(c.config, c.batch, c.tokens);
    SmallEngine whole(c.config, options_for(c, DType::fp32));
    SmallEngine frozen(c.config, options_for(c, DType::fp32, false, Trained::new_weights));
    whole.accumulate_gradients(batch, z_loss);
    frozen.accumulate_gradients(batch, z_loss);
    const std::vector<UnitSpec>& units = frozen.parameters().units();
    for (size_t u = 0; u < units.size(); ++u) {
      const auto a = whole.parameters().gradients(static_cast<int>(u));
      const auto b = frozen.parameters().gradients(static_cast<int>(u));
      for (size_t i = 0; i < a.size(); ++i) {
        CAPTURE(units[u].parameters[i].name);
        if (units[u].parameters[i].is_new) {
          CHECK(same_bits(whole, a[i], frozen, b[i]));
        } else {
          CHECK_FALSE(b[i]);
        }
      }
    }
  }
}

TEST_CASE("model: a step takes exactly the memory that was planned for it") {
  for (const Case& c : cases()) {
    for (const DType dtype : {DType::fp32, DType::bf16}) {
      for (const bool recompute : {false, true}) {
        for (const Trained trained : {Trained::all, Trained::new_weights, Trained::nothing}) {
          CAPTURE(c.name);
          SmallEngine run(c.config, options_for(c, dtype, recompute, trained));
          const std::vector<int32_t> windows(static_cast<size_t>(c.batch * (c.tokens + 1)), 3);
          if (trained != Trained::nothing) run.engine.step(windows, 1e-3, 0);
          run.engine.evaluate(windows, 1);
          CHECK(run.arena.high_water() == run.plan.bytes);
          CHECK(run.arena.table() == run.plan.table);
        }
      }
    }
  }
}
