#include <filesystem>
#include <fstream>
#include <sstream>

#include <doctest/doctest.h>

#include "launch/recipe/recipe.h"
#include "runtime/error.h"

using namespace supra;
using doctest::Contains;

namespace {

const std::string source_dir = SUPRA_SOURCE_DIR;

const std::string minimal = R"([model]
base = "base.h5"
[data]
train = "train.h5"
[train]
steps = 2000
[run]
folder = "runs/x"
)";

const std::string scratch = R"([model]
vocabulary = 100
width = 64
layers = 2
heads = 4
ffn = 128
[data]
train = "train.h5"
[train]
steps = 2000
[run]
folder = "runs/x"
)";

Recipe parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_recipe(text, "r.toml", overrides);
}

std::string replaced(std::string text, const std::string& old, const std::string& by) {
  return text.replace(text.find(old), old.size(), by);
}

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  REQUIRE(file);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// A softmax base with sizes of its own.
ModelConfig small_base() {
  ModelConfig c;
  c.width = 64;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_width = 16;
  c.rope.base = 5e5;
  c.rope.scale = 2;
  return c;
}

}  // namespace

TEST_CASE("recipe: what is not set has the paper's settings") {
  const Recipe r = parse(minimal);
  CHECK(r.model.base == "base.h5");
  CHECK(r.model.attention == Attention::linear);
  CHECK_FALSE(r.model.width);
  CHECK(r.data.sequence_length == 2048);
  CHECK(r.train.global_batch == 1024);
  CHECK(r.train.learning_rate == 3e-5);
  CHECK(r.train.min_learning_rate == 1e-5);
  CHECK(r.train.warmup_steps == 1000);
  CHECK(r.train.beta1 == 0.9);
  CHECK(r.train.beta2 == 0.95);
  CHECK(r.train.eps == 1e-8);
  CHECK(r.train.weight_decay == 0.1);
  CHECK(r.train.grad_clip == 1);
  CHECK(r.train.z_loss == 1e-4);
  CHECK(r.train.dtype == Precision::mixed);
}

TEST_CASE("recipe: printing and parsing give the recipe back") {
  CHECK(parse(to_toml(parse(minimal))) == parse(minimal));
  CHECK(parse(to_toml(parse(scratch))) == parse(scratch));
  const Recipe r =
      parse(scratch, {"model.feature_map=per_head", "model.slopes=retnet", "model.qk_norm=true",
                      "model.normalization=denominator", "model.normalization_eps=1e-7",
                      "model.rope_base=1e6", "model.rope_inv_freq=bf16", "model.tied_head=true",
                      "model.family=mistral", "model.kv_heads=1", "model.feature_map_init=identity",
                      "train.learning_rate=0.1", "train.train=new_weights", "train.recompute=block",
                      "train.dtype=fp32", "run.folder='a \"b\" \\ c'", "run.resume=latest"});
  CHECK(r.run.folder == "a \"b\" \\ c");
  CHECK(parse(to_toml(r)) == r);
  CHECK(recipe_hash(parse(to_toml(r))) == recipe_hash(r));
  CHECK(recipe_hash(r) != recipe_hash(parse(scratch)));
}

TEST_CASE("recipe: strings of any bytes survive printing") {
  Recipe r = parse(minimal);
  r.run.folder = "tab\t newline\n bell\a quote\" back\\slash del\x7f caf\xc3\xa9";
  CHECK(parse(to_toml(r)) == r);
}

TEST_CASE("recipe: overrides win over the file, strings need no quotes") {
  const Recipe r = parse(minimal, {"train.steps=7", "train.warmup_steps=3", "run.folder=/tmp/a=b",
                                   "model.base=\"quoted.h5\"", "data.train=123", "train.eps=1"});
  CHECK(r.train.steps == 7);
  CHECK(r.run.folder == "/tmp/a=b");
  CHECK(r.model.base == "quoted.h5");
  CHECK(r.data.train == "123");
  CHECK(r.train.eps == 1.0);
}

TEST_CASE("recipe: an unknown key names its place and the nearest key") {
  CHECK_THROWS_WITH_AS(parse(replaced(minimal, "steps", "step")),
                       "r.toml:6:1: no recipe key is called train.step; the nearest is train.steps",
                       Error);
  CHECK_THROWS_WITH_AS(
      parse(replaced(minimal, "steps", "  lerning_rate")),
      "r.toml:6:3: no recipe key is called train.lerning_rate; the nearest is train.learning_rate",
      Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.sed=1"}), Contains("the nearest is data.seed"),
                       Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.sequence_length=1"}),
                       "--set train.sequence_length=1: no recipe key is called "
                       "train.sequence_length; the nearest is data.sequence_length",
                       Error);
  CHECK_THROWS_WITH_AS(parse("steps = 5\n" + minimal),
                       "r.toml:1:1: steps stands outside of a section; the nearest key is "
                       "train.steps",
                       Error);
  CHECK_THROWS_WITH_AS(
      parse(minimal + "[trian]\n"),
      Contains("no recipe section is called [trian]; there are [model], [data], [train], [run]"),
      Error);
}

TEST_CASE("recipe: a value of the wrong type or out of range is named with what was expected") {
  CHECK_THROWS_WITH_AS(parse(replaced(minimal, "2000", "\"many\"")),
                       "r.toml:6:1: train.steps must be an integer, found 'many'", Error);
  CHECK_THROWS_WITH_AS(parse(replaced(minimal, "2000", "2.5")),
                       "r.toml:6:1: train.steps must be an integer, found 2.5", Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.steps=-1"}),
                       "--set train.steps=-1: train.steps must be at least 0, found -1", Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.beta1=1"}),
                       Contains("train.beta1 must be in [0, 1), found 1"), Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.eps=0"}), Contains("must be above 0, found 0"),
                       Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.z_loss=nan"}), Contains("must be at least 0"), Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.weight_decay=inf"}), Contains("found inf"), Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.steps=many"}), Contains("must be an integer"), Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.dtype=fp16"}),
                       "--set train.dtype=fp16: train.dtype must be one of \"mixed\", \"fp32\", "
                       "found \"fp16\"",
                       Error);
  CHECK_THROWS_WITH_AS(parse(scratch, {"model.family=gpt"}),
                       Contains("must be one of \"llama\", \"mistral\", found \"gpt\""), Error);
  CHECK_THROWS_WITH_AS(parse(scratch, {"model.tied_head=1"}),
                       Contains("model.tied_head must be a boolean, found 1"), Error);
}

TEST_CASE("recipe: text that is no TOML, a missing file and a malformed override say so") {
  CHECK_THROWS_WITH_AS(parse("[model\nbase = 3"), Contains("r.toml:1:7: not valid TOML: "), Error);
  CHECK_THROWS_WITH_AS(load_recipe("no/such.toml"),
                       "cannot read the recipe no/such.toml: No such file or directory", Error);
  CHECK_THROWS_WITH_AS(load_recipe(source_dir), Contains("cannot read the recipe"), Error);
  for (const char* text : {"train.steps", "steps=3", "=", "steps=a.b"}) {
    CHECK_THROWS_WITH_AS(parse(minimal, {text}), Contains("expected section.key=value"), Error);
  }
}

TEST_CASE("recipe: keys that do not go together are refused") {
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.tokens=1000000"}),
                       Contains("train.steps is 2000 and train.tokens is 1000000; set one"), Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.steps=0"}), "r.toml: set train.steps or train.tokens",
                       Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.min_learning_rate=1e-3"}),
                       Contains("min_learning_rate 0.001 is above train.learning_rate 3e-05"),
                       Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"train.steps=10"}),
                       Contains("train.warmup_steps 1000 is more than the 10 steps"), Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"model.width=64"}),
                       Contains("model.width is the base's, base.h5; leave it out"), Error);
  CHECK_THROWS_WITH_AS(parse(scratch, {"model.base=b.h5"}), Contains("is the base's, b.h5"), Error);
  CHECK_THROWS_WITH_AS(parse(replaced(scratch, "ffn = 128", "")),
                       Contains("model.ffn is not set, which a model from scratch needs"), Error);
  CHECK_THROWS_WITH_AS(parse(replaced(minimal, "folder = \"runs/x\"", "")),
                       Contains("run.folder is not set"), Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"model.attention=softmax", "model.slopes=none"}),
                       Contains("model.slopes means nothing with"), Error);
  CHECK_THROWS_WITH_AS(parse(minimal, {"model.attention=softmax", "train.train=new_weights"}),
                       Contains("leaves nothing to train"), Error);
}

TEST_CASE("recipe: tokens are rounded up to whole steps") {
  const std::vector<std::string> sizes = {"train.steps=0", "train.warmup_steps=0",
                                          "train.global_batch=4", "data.sequence_length=8"};
  auto steps = [&](const std::string& tokens) {
    std::vector<std::string> overrides = sizes;
    overrides.push_back("train.tokens=" + tokens);
    return total_steps(parse(minimal, overrides));
  };
  CHECK(steps("1") == 1);
  CHECK(steps("32") == 1);
  CHECK(steps("33") == 2);
  CHECK(steps("9223372036854775807") == 288230376151711744);
  CHECK(total_steps(parse(minimal)) == 2000);
}

TEST_CASE("recipe: a batch that does not divide names the nearest that do") {
  CHECK_NOTHROW(check_batch(12, 1, 4));
  CHECK_NOTHROW(check_batch(12, 2, 3));
  CHECK_THROWS_WITH_AS(check_batch(10, 1, 4),
                       "global_batch 10 is not divisible by ranks 4 x micro_batch 1; the nearest "
                       "that are: 8, 12",
                       Error);
  CHECK_THROWS_WITH_AS(check_batch(3, 2, 4), Contains("the nearest that are: 8"), Error);
}

TEST_CASE("resolve_model: from scratch, sizes are the recipe's and the rest has its defaults") {
  const ModelConfig c = resolve_model(parse(scratch), std::nullopt);
  CHECK(c.vocabulary == 100);
  CHECK(c.head_width == 16);
  CHECK(c.kv_heads == 4);
  CHECK(c.norm_eps == 1e-5);
  CHECK(c.window == 0);
  CHECK_FALSE(c.tied_head);
  CHECK(c.rope == RopeConfig{});
  CHECK(c.attention == Attention::linear);
  CHECK(c.linear == LinearAttentionConfig{});
  CHECK_THROWS_WITH_AS(resolve_model(parse(scratch, {"model.heads=3"}), std::nullopt),
                       Contains("model.width 64 is not divisible by model.heads 3"), Error);
}

TEST_CASE("resolve_model: a softmax base keeps its architecture and is converted") {
  ModelConfig expected = small_base();
  expected.attention = Attention::linear;
  CHECK(resolve_model(parse(minimal), small_base()) == expected);

  const Recipe t2r = parse(minimal, {"model.normalization=denominator", "model.slopes=none",
                                     "model.rope_base=1e6", "model.rope_inv_freq=bf16"});
  expected.linear.normalization = Normalization::denominator;
  expected.linear.eps = 1e-6;
  expected.linear.slopes = Slopes::none;
  expected.rope.base = 1e6;
  expected.rope.inv_freq = InvFreqRounding::bf16;
  CHECK(resolve_model(t2r, small_base()) == expected);

  const Recipe unchanged = parse(minimal, {"model.attention=softmax"});
  CHECK(resolve_model(unchanged, small_base()) == small_base());
}

TEST_CASE("resolve_model: a linear base keeps its options unless the recipe changes them") {
  ModelConfig base = small_base();
  base.attention = Attention::linear;
  base.linear = {FeatureMap::per_head, Slopes::retnet, Normalization::denominator, 1e-4, true};
  CHECK(resolve_model(parse(minimal), base) == base);
  CHECK(resolve_model(parse(minimal, {"model.feature_map=per_head"}), base) == base);
  CHECK(resolve_model(parse(minimal, {"model.normalization=denominator"}), base) == base);

  ModelConfig changed = base;
  changed.linear.slopes = Slopes::lightning;
  changed.linear.normalization = Normalization::group_norm;
  changed.linear.eps = 1e-5;
  CHECK(resolve_model(parse(minimal, {"model.slopes=lightning", "model.normalization=group_norm"}),
                      base) == changed);

  CHECK_THROWS_WITH_AS(
      resolve_model(parse(minimal, {"model.feature_map=dense"}), base),
      Contains("model.feature_map is dense, but the base base.h5 is linear already, with per_head"),
      Error);
  CHECK_THROWS_WITH_AS(resolve_model(parse(minimal, {"model.qk_norm=false"}), base),
                       Contains("model.qk_norm is false"), Error);
  CHECK_THROWS_WITH_AS(resolve_model(parse(minimal, {"model.feature_map_init=identity"}), base),
                       Contains("has trained feature maps already"), Error);
  CHECK_THROWS_WITH_AS(resolve_model(parse(minimal, {"model.attention=softmax"}), base),
                       Contains("cannot undo"), Error);
}

TEST_CASE("recipes: every recipe that comes with the program parses") {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(source_dir + "/launch/recipes")) {
    const std::string path = entry.path().string();
    CAPTURE(path);
    const Recipe r = load_recipe(path);
    CHECK(parse(to_toml(r)) == r);
    if (r.model.base.empty()) CHECK_NOTHROW(resolve_model(r, std::nullopt));
    ++found;
  }
  CHECK(found == 11);
}

TEST_CASE("recipes: the 7B uptrain has the paper's batch and tokens") {
  for (const char* name : {"llama2-7b", "mistral-7b"}) {
    const Recipe r = load_recipe(source_dir + "/launch/recipes/" + name + ".toml");
    CHECK(r.train.global_batch * r.data.sequence_length == 2097152);
    CHECK(total_steps(r) == 9537);
    CHECK(r.train.learning_rate == 3e-5);
    CHECK_NOTHROW(check_batch(r.train.global_batch, r.train.micro_batch, 64));
  }
}

TEST_CASE("recipes: the ablations differ from SUPRA at 1B in what they are named for") {
  auto load = [](const char* name) {
    Recipe r = load_recipe(source_dir + "/launch/recipes/" + name + ".toml");
    r.run.folder.clear();
    return r;
  };
  Recipe supra = load("supra-1b");
  supra.train.train = Trainable::new_weights;
  CHECK(load("new-weights") == supra);
  CHECK(load("two-step-1") == supra);
  supra = load("supra-1b");
  supra.model.normalization = Normalization::denominator;
  supra.model.slopes = Slopes::none;
  CHECK(load("t2r") == supra);
}

TEST_CASE("recipes: docs/recipe-reference.md is what the program generates") {
  CHECK(read_text(source_dir + "/docs/recipe-reference.md") == recipe_reference());
}
