// A model that reads token by token, or in chunks, against the same model over whole sequences.

#include <doctest/doctest.h>

#include "model/decoder.h"
#include "tests/reference/model.h"
#include "tests/unit/small_model.h"

using namespace supra;
using namespace supra::test;

namespace {

constexpr double tolerance = 1e-4;  // of logits and log-probabilities, which are of order 1
constexpr int64_t batch = 2;

/// A decoder in memory of its own, which begins as NaN.
struct Reader {
  ModelConfig config;
  std::unique_ptr<Device> device = make_test_device(1);
  std::unique_ptr<Communicator> alone = make_single_communicator();
  PhaseClock clock;
  Arena arena{*device, size_t{4} << 20, true};
  ShardedParameters parameters;
  Decoder model;

  explicit Reader(const ModelConfig& c, int64_t read_at_once = 1, int64_t context = 200)
      : config(c),
        parameters(describe_parameters(c), Trained::nothing, DType::fp32, device->ops(), arena,
                   *alone, clock),
        model(config, DType::fp32,
              {.batch = batch, .read_at_once = read_at_once, .context = context}, *device, arena,
              parameters) {
    load_small_weights(parameters, *device);
  }

  /// Tokens [begin, end) of each sequence of the batch.
  void read(const SmallBatch& b, int64_t begin, int64_t end) {
    std::vector<int32_t> tokens;
    for (int64_t s = 0; s < b.batch; ++s) {
      const auto first = b.inputs.begin() + s * b.tokens;
      tokens.insert(tokens.end(), first + begin, first + end);
    }
    model.read(tokens.data(), end - begin);
  }
  std::vector<float> logits() {
    std::vector<float> x(static_cast<size_t>(batch * config.vocabulary), NAN);
    model.next_logits(x.data());
    return x;
  }
};

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double{a[i]} - double{b[i]});
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

/// The denominator's floor is high: with RoPE its sum has either sign, and a model that divides by
/// next to nothing amplifies roundings beyond what can be compared.
std::vector<ModelConfig> every_linear_attention() {
  std::vector<ModelConfig> all;
  for (const Slopes slopes : {Slopes::lightning, Slopes::retnet, Slopes::none}) {
    for (const Normalization n : {Normalization::group_norm, Normalization::denominator}) {
      for (const FeatureMap map : {FeatureMap::dense, FeatureMap::per_head}) {
        for (const bool qk_norm : {false, true}) {
          ModelConfig c = small_model();
          c.linear = {.feature_map = map,
                      .slopes = slopes,
                      .normalization = n,
                      .eps = n == Normalization::denominator ? 1 : 1e-5,
                      .qk_norm = qk_norm};
          c.tied_head = qk_norm;
          all.push_back(c);
        }
      }
    }
  }
  return all;
}

ModelConfig windowed(int64_t window) {
  ModelConfig c = small_model(Attention::softmax);
  c.window = window;
  return c;
}

/// Windows shorter and longer than what is read at once, and none.
std::vector<ModelConfig> every_attention() {
  std::vector<ModelConfig> all = every_linear_attention();
  for (const int64_t window : {0, 1, 5, 40, 150}) all.push_back(windowed(window));
  return all;
}

/// The logits after each token, by the reference in double: [T][B * V].
std::vector<std::vector<float>> parallel_logits(const ModelConfig& c, const SmallBatch& b) {
  reference::Weights<double> weights;
  for (const UnitSpec& unit : describe_parameters(c)) {
    for (const ParameterSpec& p : unit.parameters) {
      reference::Array<double>& a = weights[p.name] = reference::Array<double>(p.shape);
      for (int64_t i = 0; i < a.numel(); ++i) a.values[static_cast<size_t>(i)] = small_weight(p, i);
    }
  }
  reference::Array<double> inputs({b.batch * b.tokens});
  inputs.values.assign(b.inputs.begin(), b.inputs.end());
  const auto logits = reference::model_logits(c, weights, inputs, b.batch);
  std::vector<std::vector<float>> by_token(static_cast<size_t>(b.tokens));
  for (int64_t s = 0; s < b.batch; ++s) {
    for (int64_t t = 0; t < b.tokens; ++t) {
      const auto row = logits.row(s * b.tokens + t);
      auto& at = by_token[static_cast<size_t>(t)];
      at.insert(at.end(), row.begin(), row.end());
    }
  }
  return by_token;
}

}  // namespace

TEST_CASE("decoder: equals the parallel form at every prefix") {
  constexpr int64_t tokens = 67;  // more than a chunk of the parallel kernel
  for (const ModelConfig& c : every_attention()) {
    CAPTURE(to_json(c));
    const SmallBatch b(c, batch, tokens);
    EngineOptions options;
    options.model = {.dtype = DType::fp32, .batch = batch, .tokens = tokens};
    options.trained = Trained::nothing;
    SmallEngine parallel(c, options);
    std::vector<float> nll(b.targets.size());
    std::vector<int32_t> targets(b.targets);
    for (int32_t& t : targets) t = std::max(t, 0);
    parallel.engine.model().evaluate(b.inputs.data(), targets.data(), nll.data());
    const auto logits = parallel_logits(c, b);

    Reader reader(c);
    double logit_difference = 0, nll_difference = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      reader.read(b, t, t + 1);
      const double d = largest_difference(reader.logits(), logits[static_cast<size_t>(t)]);
      if (!(d <= logit_difference)) logit_difference = d;
      const std::vector<int32_t> next{targets[static_cast<size_t>(t)],
                                      targets[static_cast<size_t>(tokens + t)]};
      const std::vector<float> expected{nll[static_cast<size_t>(t)],
                                        nll[static_cast<size_t>(tokens + t)]};
      std::vector<float> actual(batch, NAN);
      reader.model.next_nll(next.data(), actual.data());
      nll_difference = std::max(nll_difference, largest_difference(actual, expected));
    }
    CHECK(logit_difference < tolerance);
    CHECK(nll_difference < tolerance);
    CHECK(reader.model.position() == tokens);
  }
}

TEST_CASE("decoder: a prompt read in chunks leaves what reading token by token leaves") {
  for (const ModelConfig& c : every_attention()) {
    CAPTURE(to_json(c));
    const SmallBatch b(c, batch, 170);
    Reader one(c), chunks(c, 128);
    for (int64_t t = 0; t < 170; ++t) one.read(b, t, t + 1);
    chunks.read(b, 0, 100);
    chunks.read(b, 100, 101);
    chunks.read(b, 101, 170);
    CHECK(largest_difference(one.logits(), chunks.logits()) < tolerance);
  }
}

TEST_CASE("decoder: a reset forgets everything") {
  for (const ModelConfig& c : every_attention()) {
    const SmallBatch b(c, batch, 8);
    Reader used(c), fresh(c);
    for (int64_t t = 0; t < 5; ++t) used.read(b, t, t + 1);
    used.model.reset();
    CHECK(used.model.position() == 0);
    for (int64_t t = 5; t < 8; ++t) {
      used.read(b, t, t + 1);
      fresh.read(b, t, t + 1);
      CHECK(used.logits() == fresh.logits());
    }
  }
}

TEST_CASE("decoder: a linear model's state is H matrices of d x d a layer, however much is read") {
  ModelConfig c = small_model();
  CHECK(Reader(c).model.state_bytes() == sizeof(float) * 2 * 4 * 6 * 6);
  c.linear.normalization = Normalization::denominator;
  CHECK(Reader(c).model.state_bytes() == sizeof(float) * 2 * 4 * (6 * 6 + 6));
  Reader reader(c);
  const SmallBatch b(c, batch, 40);
  reader.read(b, 0, 1);
  const size_t used = reader.arena.high_water();
  for (int64_t t = 1; t < 40; ++t) reader.read(b, t, t + 1);
  CHECK(reader.arena.high_water() == used);
}

TEST_CASE("decoder: a softmax model's cache grows by a key and a value a token, up to its window") {
  constexpr size_t row = sizeof(float) * 2 * 2 * 2 * 6;  // layers, key and value, Hkv, d
  const SmallBatch b(small_model(), batch, 100);
  Reader all(windowed(0)), seen(windowed(8));
  for (int64_t t = 0; t < 100; ++t) {
    all.read(b, t, t + 1);
    seen.read(b, t, t + 1);
    CHECK(all.model.state_bytes() == row * static_cast<size_t>(t + 1));
    CHECK(seen.model.state_bytes() >= row * static_cast<size_t>(std::min<int64_t>(t + 1, 8)));
    CHECK(seen.model.state_bytes() <= row * (8 - 1 + 8 / 4));
  }
}

TEST_CASE("decoder: reading on from a state of arbitrary values gives finite logits") {
  for (const ModelConfig& c : every_attention()) {
    CAPTURE(to_json(c));
    const SmallBatch b(c, batch, 2);
    Reader reader(c);
    reader.model.pretend_to_read(150);
    CHECK(reader.model.position() == 150);
    reader.read(b, 0, 1);
    for (const float x : reader.logits()) CHECK(std::isfinite(x));
    CHECK(reader.model.position() == 151);
  }
}

TEST_CASE("decoder: reading more than was said is refused") {
  Reader reader(windowed(0), 4, 6);
  const SmallBatch b(reader.config, batch, 12);
  reader.read(b, 0, 4);
  CHECK_THROWS_AS(reader.read(b, 4, 7), Error);
  CHECK_THROWS_AS(reader.read(b, 4, 9), Error);
}
