#include <cmath>

#include <doctest/doctest.h>

#include "model/positions.h"
#include "tests/reference/model.h"

using namespace supra;

namespace {

/// How far tables are from the reference's, at most.
double difference(const RopeTables& actual, const reference::RopeTables<double>& expected,
                  int64_t first = 0) {
  const auto skipped = static_cast<size_t>(first * expected.cos.size(1));
  double largest = actual.cos.size() == actual.sin.size() ? 0 : INFINITY;
  for (size_t i = 0; i < actual.cos.size(); ++i) {
    largest = std::max({largest, std::abs(actual.cos[i] - expected.cos.values[skipped + i]),
                        std::abs(actual.sin[i] - expected.sin.values[skipped + i])});
  }
  return largest;
}

/// The frequency of pair i, read off its angle at position 1.
double inv_freq(const RopeConfig& c, int64_t head_width, size_t i) {
  const RopeTables t = rope_tables(c, head_width, 1, 1);
  return std::atan2(t.sin[i], t.cos[i]);
}

}  // namespace

TEST_CASE("positions: lightning slopes of 32 heads fall from 0.8409 to 2^-8") {
  const std::vector<float> s = decay_slopes(Slopes::lightning, 32);
  REQUIRE(s.size() == 32);
  CHECK(s[0] == doctest::Approx(0.8408964).epsilon(1e-7));
  CHECK(s[31] == 0x1p-8F);
  for (size_t h = 1; h < 32; ++h) CHECK(s[h] < s[h - 1]);
  const std::vector<float> eight = decay_slopes(Slopes::lightning, 8);
  for (int h = 0; h < 8; ++h) CHECK(eight[static_cast<size_t>(h)] == std::exp2(-(h + 1.0F)));
}

TEST_CASE("positions: heads that are no power of two take every other slope of the next one") {
  const std::vector<float> six = decay_slopes(Slopes::lightning, 6);
  const std::vector<float> expected{0x1p-2F, 0x1p-4F, 0x1p-6F, 0x1p-8F, 0x1p-1F, 0x1p-3F};
  CHECK(six == expected);
}

TEST_CASE("positions: retnet slopes stay above zero for any number of heads") {
  const std::vector<float> s = decay_slopes(Slopes::retnet, 40);
  CHECK(s[0] == doctest::Approx(-std::log(1 - 1.0 / 32)).epsilon(1e-7));
  CHECK(s[39] == doctest::Approx(0x1p-44).epsilon(1e-6));
  CHECK(decay_slopes(Slopes::none, 5) == std::vector<float>(5, 0));
}

TEST_CASE("positions: slopes are the reference's") {
  for (const Slopes kind : {Slopes::lightning, Slopes::retnet, Slopes::none}) {
    for (const int64_t heads : {1, 2, 3, 6, 9, 24, 32, 40, 71}) {
      const std::vector<float> actual = decay_slopes(kind, heads);
      const std::vector<double> expected = reference::decay_slopes(kind, heads);
      REQUIRE(actual.size() == expected.size());
      for (size_t h = 0; h < actual.size(); ++h) {
        CHECK(actual[h] == doctest::Approx(expected[h]).epsilon(1e-7));
      }
    }
  }
}

TEST_CASE("positions: rotary tables are the reference's, wherever they begin") {
  for (const double base : {1e4, 1e6}) {
    for (const double scale : {1.0, 4.0}) {
      for (const InvFreqRounding rounding : {InvFreqRounding::fp32, InvFreqRounding::bf16}) {
        RopeConfig c;
        c.base = base;
        c.scale = scale;
        c.inv_freq = rounding;
        const auto expected = reference::rope_tables(c, 64, 300);
        CHECK(difference(rope_tables(c, 64, 300), expected) < 0x1p-24);
        CHECK(difference(rope_tables(c, 64, 7, 293), expected, 293) < 0x1p-24);
      }
    }
  }
}

TEST_CASE("positions: rounding frequencies to bf16 changes them, except the first") {
  RopeConfig c;
  const double exact = inv_freq(c, 128, 5);
  c.inv_freq = InvFreqRounding::bf16;
  CHECK(inv_freq(c, 128, 0) == doctest::Approx(1));
  CHECK(inv_freq(c, 128, 5) != doctest::Approx(exact).epsilon(1e-5));
  CHECK(inv_freq(c, 128, 5) == doctest::Approx(exact).epsilon(0x1p-8));
}

TEST_CASE("positions: Llama 3's frequencies are those of Hugging Face transformers") {
  RopeConfig c;
  c.base = 500000;
  c.llama3_factor = 8;
  // Of Llama 3.1 8B: kept, blended, and slowed.
  const std::vector<std::pair<size_t, double>> published{{0, 1.0},
                                                         {10, 0.12868738174438477},
                                                         {28, 0.0032114461064338684},
                                                         {30, 0.0013718936825171113},
                                                         {33, 0.0003126936499029398},
                                                         {36, 7.784655463183299e-05},
                                                         {45, 1.2297638932068367e-05},
                                                         {63, 3.068925877869333e-07}};
  for (const auto& [i, f] : published)
    CHECK(inv_freq(c, 128, i) == doctest::Approx(f).epsilon(1e-6));
  CHECK(difference(rope_tables(c, 128, 50), reference::rope_tables(c, 128, 50)) < 0x1p-24);
}
