#pragma once
// A recipe: all that decides a training run. Each section below is a struct of typed, defaulted
// fields and, beside them, the list of its keys with their meaning and range. That list alone
// drives the parser, the printer, `--set` and docs/recipe-reference.md: adding a key is adding a
// field and its line.

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "runtime/device.h"

namespace supra {

enum class FeatureMapInit : uint8_t { uniform, identity };
enum class Precision : uint8_t {
  fp32,
  mixed,  ///< bf16 to compute, fp32 for master weights, moments, gradients and statistics
};
enum class Recompute : uint8_t { none, block };
enum class Trainable : uint8_t { all, new_weights };
/// What a run does when a checkpoint cannot be written.
enum class OnFailure : uint8_t { stop, go_on };
/// What a run does about a step whose loss or gradient is not to be trusted.
enum class OnAnomaly : uint8_t {
  stop,
  skip,       ///< the batch: nothing is updated, the next samples are taken
  roll_back,  ///< to the last checkpoint, and go on with the samples after the batch
  ignore,     ///< of spikes only
};

std::string_view name_of(FeatureMapInit v);
std::string_view name_of(Precision v);
std::string_view name_of(Recompute v);
std::string_view name_of(Trainable v);
std::string_view name_of(DeviceKind v);
std::string_view name_of(OnFailure v);
std::string_view name_of(OnAnomaly v);

/// What a key accepts besides its type: numbers in a range, or one of a few words.
struct Limits {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool min_excluded = false, max_excluded = false;
  std::vector<std::string_view> words = {};
};
inline Limits at_least(double min) {
  return {.min = min};
}
inline Limits above(double min) {
  return {.min = min, .min_excluded = true};
}
inline Limits between(double min, double max) {
  return {.min = min, .max = max};
}
inline Limits from_below(double min, double max) {
  return {.min = min, .max = max, .max_excluded = true};
}

/// A key of [model] that is unset unless the recipe sets it, and where its value then comes from.
enum class Inherited : uint8_t {
  architecture,  ///< the base's; may be set only when there is no base
  rope,          ///< the base's, or the stated default from scratch
  linear,        ///< the base's if its attention is linear already, else the stated default
};

struct ModelRecipe {
  std::string base;
  Attention attention = Attention::linear;
  std::optional<std::string> family;
  std::optional<int64_t> vocabulary, width, layers, heads, kv_heads, head_width, ffn, window;
  std::optional<bool> tied_head;
  std::optional<double> norm_eps;
  std::optional<double> rope_base, rope_scale;
  std::optional<InvFreqRounding> rope_inv_freq;
  std::optional<FeatureMap> feature_map;
  std::optional<FeatureMapInit> feature_map_init;
  std::optional<Slopes> slopes;
  std::optional<Normalization> normalization;
  std::optional<double> normalization_eps;
  std::optional<bool> qk_norm;
  bool operator==(const ModelRecipe&) const = default;

  template <class Self, class Visitor>
  static void visit(Self& s, Visitor& v) {
    using enum Inherited;
    v.section("model",
              "What is trained: a converted base model, or a new one. The keys from `family` to "
              "`norm_eps` are for a new one only.");
    v.key("base", s.base,
          "Model file made by `supra import`, or a checkpoint. Empty: from scratch, the sizes "
          "below must then be set.");
    v.key("attention", s.attention,
          "What the blocks mix tokens with. `linear` converts a softmax base.");
    v.inherited(architecture, "family", s.family, "`llama`",
                "Hugging Face architecture the model counts as.", {.words = {"llama", "mistral"}});
    v.inherited(architecture, "vocabulary", s.vocabulary, "required", "Number of tokens.",
                at_least(1));
    v.inherited(architecture, "width", s.width, "required", "Model width D.", at_least(1));
    v.inherited(architecture, "layers", s.layers, "required", "Number of blocks.", at_least(1));
    v.inherited(architecture, "heads", s.heads, "required", "Query heads H.", at_least(1));
    v.inherited(architecture, "kv_heads", s.kv_heads, "heads",
                "Key and value heads, a divisor of heads.", at_least(1));
    v.inherited(architecture, "head_width", s.head_width, "width / heads",
                "Width d of a head, even.", at_least(2));
    v.inherited(architecture, "ffn", s.ffn, "required", "Feed-forward width F.", at_least(1));
    v.inherited(architecture, "window", s.window, "0",
                "Sliding window of softmax attention, in tokens; 0: none.", at_least(0));
    v.inherited(architecture, "tied_head", s.tied_head, "false",
                "Use the embedding as the output head too.");
    v.inherited(architecture, "norm_eps", s.norm_eps, "1e-05", "Epsilon of RMSNorm.", above(0));
    v.inherited(rope, "rope_base", s.rope_base, "10000.0",
                "Base of the rotary frequencies; 1e6 for long contexts.", above(0));
    v.inherited(rope, "rope_scale", s.rope_scale, "1.0",
                "Linear position interpolation: positions are divided by it.", above(0));
    v.inherited(rope, "rope_inv_freq", s.rope_inv_freq, "`fp32`",
                "Rounding of the rotary frequencies. `bf16` reproduces weights trained under "
                "autocast.");
    v.inherited(linear, "feature_map", s.feature_map, "`dense`",
                "Form of the trained map of q and k: one matrix over all heads, or one per head.");
    v.inherited(linear, "feature_map_init", s.feature_map_init, "`uniform`",
                "How the feature maps begin: uniform in +-1/sqrt(fan in), or the identity.");
    v.inherited(linear, "slopes", s.slopes, "`lightning`",
                "Decay of each head's state: TransNormer's, RetNet's, or none.");
    v.inherited(linear, "normalization", s.normalization, "`group_norm`",
                "Of the attention's output: GroupNorm (SUPRA), or division by the sum of "
                "similarities (T2R).");
    v.inherited(linear, "normalization_eps", s.normalization_eps,
                "1e-05 for `group_norm`, 1e-06 for `denominator`",
                "Epsilon of the GroupNorm, or the floor of the denominator.", above(0));
    v.inherited(linear, "qk_norm", s.qk_norm, "false",
                "RMSNorm of q and k over all heads, after the feature map.");
  }
};

struct DataRecipe {
  std::string train, validation;
  int64_t sequence_length = 2048;
  int64_t seed = 0;
  int64_t validation_sequences = 0;
  bool operator==(const DataRecipe&) const = default;

  template <class Self, class Visitor>
  static void visit(Self& s, Visitor& v) {
    v.section("data", "The token files, made by `launch/pack_text.py`.");
    v.required("train", s.train, "Token file to train on.");
    v.key("validation", s.validation, "Token file to validate on. Empty: no validation.");
    v.key("sequence_length", s.sequence_length, "Tokens T of a sequence.", between(1, 1 << 24));
    v.key("seed", s.seed,
          "Seed of the order of sequences, which does not depend on the number of ranks.",
          at_least(0));
    v.key("validation_sequences", s.validation_sequences,
          "Sequences used of the validation file; 0: all.", at_least(0));
  }
};

struct TrainRecipe {
  int64_t steps = 0, tokens = 0;
  int64_t global_batch = 1024, micro_batch = 1;
  double learning_rate = 3e-5, min_learning_rate = 1e-5;
  int64_t warmup_steps = 1000;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double grad_clip = 1, z_loss = 1e-4;
  Precision dtype = Precision::mixed;
  Recompute recompute = Recompute::none;
  Trainable train = Trainable::all;
  int64_t init_seed = 0;
  int64_t validate_every = 0;
  DeviceKind device = DeviceKind::cpu;
  bool operator==(const TrainRecipe&) const = default;

  template <class Self, class Visitor>
  static void visit(Self& s, Visitor& v) {
    v.section("train", "The optimisation. Exactly one of `steps` and `tokens` is set.");
    v.key("steps", s.steps, "Steps to train; 0: as `tokens` says.", at_least(0));
    v.key("tokens", s.tokens, "Tokens to train on, rounded up to whole steps; 0: as `steps` says.",
          at_least(0));
    v.key("global_batch", s.global_batch,
          "Sequences of a step over all ranks; a multiple of ranks x micro_batch.",
          between(1, 1 << 24));
    v.key("micro_batch", s.micro_batch,
          "Sequences a rank computes at once; gradients of the rest accumulate.",
          between(1, 1 << 24));
    v.key("learning_rate", s.learning_rate, "Peak, reached after the warm-up.", above(0));
    v.key("min_learning_rate", s.min_learning_rate, "Where the cosine ends.", at_least(0));
    v.key("warmup_steps", s.warmup_steps, "Steps of linear warm-up.", at_least(0));
    v.key("beta1", s.beta1, "Adam's decay of the first moment.", from_below(0, 1));
    v.key("beta2", s.beta2, "Adam's decay of the second moment.", from_below(0, 1));
    v.key("eps", s.eps, "Adam's epsilon.", above(0));
    v.key("weight_decay", s.weight_decay, "Decoupled, of every parameter.", at_least(0));
    v.key("grad_clip", s.grad_clip, "Largest global gradient norm; 0: no clipping.", at_least(0));
    v.key("z_loss", s.z_loss, "Weight of the mean squared log-sum-exp of the logits; 0: off.",
          at_least(0));
    v.key("dtype", s.dtype,
          "`fp32` throughout, or `mixed`: bf16 parameters, activations and products; fp32 sums, "
          "master weights, moments and gradients.");
    v.key("recompute", s.recompute,
          "`block` keeps only each block's input for the backward and computes the rest again.");
    v.key("train", s.train,
          "`new_weights` trains the feature maps and q/k norms and freezes the base's weights.");
    v.key("init_seed", s.init_seed, "Seed of the weights that begin at random.", at_least(0));
    v.key("validate_every", s.validate_every,
          "Steps between validations; 0: only before the first step and after the last.",
          at_least(0));
    v.key("device", s.device,
          "Where the model is computed: `cpu` with MPI, or `cuda` with NCCL, one GPU a rank.");
  }
};

struct RunRecipe {
  std::string folder;
  std::string resume = "none";
  int64_t threads = 0;
  bool log_samples = false;
  bool operator==(const RunRecipe&) const = default;

  template <class Self, class Visitor>
  static void visit(Self& s, Visitor& v) {
    v.section("run", "Where the run writes, and how it goes on after a stop.");
    v.required("folder", s.folder,
               "Receives recipe.toml, metrics.jsonl and the checkpoints; made if missing.");
    v.key("resume", s.resume,
          "`none` begins a run in a folder that holds none yet, `latest` goes on from the "
          "folder's last checkpoint if it has one, anything else is the path of a checkpoint.");
    v.key("threads", s.threads, "Threads of a rank; 0: the machine's cores shared by its ranks.",
          between(0, 4096));
    v.key("log_samples", s.log_samples,
          "Each rank writes which windows it trained on at each step, samples-0000.jsonl.");
  }
};

struct CheckpointRecipe {
  int64_t every = 0;
  int64_t staging = 1024;
  int64_t keep_last = 0, keep_every = 0;
  OnFailure on_failure = OnFailure::stop;
  bool operator==(const CheckpointRecipe&) const = default;

  template <class Self, class Visitor>
  static void visit(Self& s, Visitor& v) {
    v.section("checkpoint", "What is kept of a run, for going on after a stop.");
    v.key("every", s.every, "Steps between checkpoints; 0: only after the last step.", at_least(0));
    v.key("staging", s.staging,
          "Host memory of a rank, in MiB, that a checkpoint waits in while it is written beside "
          "the steps that follow; never more than the rank's part of it. What does not fit is "
          "written before the next step begins.",
          between(16, 1 << 24));
    v.key("keep_last", s.keep_last, "Newest checkpoints that are kept; 0: all.", at_least(0));
    v.key("keep_every", s.keep_every,
          "Checkpoints of steps that are multiples of this are kept for ever; 0: none.",
          at_least(0));
    v.key("on_failure", s.on_failure,
          "When a checkpoint cannot be written, a full disk for one: `stop`, or `go_on` to the "
          "next. The checkpoints before stay whole.");
  }
};

struct WatchRecipe {
  int64_t step_timeout = 3600, collective_timeout = 600;
  bool check_collectives = false;
  bool check_node = false;
  OnAnomaly on_not_finite = OnAnomaly::stop, on_spike = OnAnomaly::ignore;
  double spike_deviations = 6;
  int64_t spike_window = 128;
  int64_t max_skipped = 10;
  bool operator==(const WatchRecipe&) const = default;

  template <class Self, class Visitor>
  static void visit(Self& s, Visitor& v) {
    v.section("watch",
              "What is watched for while a run goes on. docs/watchdog.md, docs/operations.md.");
    v.key("step_timeout", s.step_timeout,
          "Seconds that a step, a validation or a wait for a checkpoint may take before the run "
          "is ended; 0: any.",
          at_least(0));
    v.key("collective_timeout", s.collective_timeout,
          "Seconds that a rank may wait in one collective before the run is ended and the rank "
          "that did not come is named; 0: any.",
          at_least(0));
    v.key("check_collectives", s.check_collectives,
          "Before each collective, check that all ranks make the same call. Slow: for debugging.");
    v.key("check_node", s.check_node,
          "Measure hosts, disks and network before the first step, as `supra check-node` does.");
    v.key("on_not_finite", s.on_not_finite,
          "What to do about a loss or gradient that is not finite: `stop`, `skip` the batch, or "
          "`roll_back` to the last checkpoint and skip.",
          {.words = {"stop", "skip", "roll_back"}});
    v.key("on_spike", s.on_spike, "The same about a spike of the loss; `ignore` looks for none.");
    v.key("spike_deviations", s.spike_deviations,
          "A loss this many standard deviations above the mean of the last steps is a spike.",
          above(0));
    v.key("spike_window", s.spike_window,
          "Steps that mean and deviation are taken over; none is a spike before so many.",
          between(2, 65536));
    v.key("max_skipped", s.max_skipped, "Batches skipped before the run is stopped.", at_least(0));
  }
};

struct Recipe {
  ModelRecipe model;
  DataRecipe data;
  TrainRecipe train;
  RunRecipe run;
  CheckpointRecipe checkpoint;
  WatchRecipe watch;
  bool operator==(const Recipe&) const = default;

  /// Calls `v.section(name, doc)` and then, for its keys in order, one of `v.key(name, field, doc,
  /// limits)`, `v.required(name, field, doc)` and `v.inherited(kind, name, field, from_scratch,
  /// doc, limits)`; `limits` may be absent.
  template <class Self, class Visitor>
  static void visit(Self& r, Visitor& v) {
    ModelRecipe::visit(r.model, v);
    DataRecipe::visit(r.data, v);
    TrainRecipe::visit(r.train, v);
    RunRecipe::visit(r.run, v);
    CheckpointRecipe::visit(r.checkpoint, v);
    WatchRecipe::visit(r.watch, v);
  }
};

/// Reads a recipe; each override is "section.key=value", the value as in TOML, or bare text for a
/// string. Unknown keys (the nearest is named), wrong types, values out of range and keys that do
/// not go together are bad input.
Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides = {});
/// The same from text; `source` names it in errors.
Recipe parse_recipe(std::string_view text, const std::string& source,
                    const std::vector<std::string>& overrides = {});

/// Every key that has a value, as TOML: `parse_recipe(to_toml(r), "")` equals r.
std::string to_toml(const Recipe& recipe);
/// 16 hexadecimal digits, equal for equal recipes.
std::string recipe_hash(const Recipe& recipe);
/// docs/recipe-reference.md.
std::string recipe_reference();

/// train.steps, or as many steps as train.tokens fill.
int64_t total_steps(const Recipe& recipe);
/// Bad input, naming the nearest sizes that fit, unless ranks x micro_batch divides global_batch.
void check_batch(int64_t global_batch, int64_t micro_batch, int64_t ranks);
/// The architecture to train: the base's (absent exactly when model.base is empty) with what the
/// recipe changes. Bad input when the recipe asks for what the base cannot become.
ModelConfig resolve_model(const Recipe& recipe, const std::optional<ModelConfig>& base);

}  // namespace supra
