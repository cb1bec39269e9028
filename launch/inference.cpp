#include "launch/inference.h"

#include <algorithm>
#include <sched.h>

#include "model/model_file.h"
#include "parallel/load_weights.h"

namespace supra {
namespace {

int all_cores() {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  ::sched_getaffinity(0, sizeof(mine), &mine);
  return std::max(1, CPU_COUNT(&mine));
}

std::unique_ptr<Device> make_device(const InferenceOptions& o) {
  if (o.device == "cuda") return make_cuda_device(0);
  return make_cpu_device(o.threads > 0 ? o.threads : all_cores());
}

DType dtype_of_option(const InferenceOptions& o) {
  return o.dtype == "bf16" ? DType::bf16 : DType::fp32;
}

ModelConfig config_of(const ModelFile& file, const InferenceOptions& o) {
  ModelConfig config = file.config();
  if (!o.attention.empty()) config.attention = parse_enum<Attention>(o.attention, "--attention");
  return config;
}

void load(ShardedParameters& parameters, Device& device, const ModelFile& file,
          const InferenceOptions& o) {
  load_weights(parameters, device, &file, static_cast<uint64_t>(o.init_seed));
}

}  // namespace

void add_inference_options(CLI::App& command, InferenceOptions& options) {
  command.add_option("--dtype", options.dtype, "Precision of weights and activations")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command
      .add_option("--attention", options.attention,
                  "Use the model with this attention, whatever it was trained with; a softmax "
                  "model made linear gets fresh feature maps")
      ->check(CLI::IsMember({"softmax", "linear"}));
  command.add_option("--init-seed", options.init_seed, "Seed of fresh feature maps")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--device", options.device, "Where to compute")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command.add_option("--threads", options.threads, "Threads of the CPU device; 0: all cores")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
}

Inference::Inference(const InferenceOptions& options, int64_t batch, int64_t tokens)
    : device_(make_device(options)), communicator_(make_single_communicator()) {
  const ModelFile file(options.model);
  config_ = config_of(file, options);
  EngineOptions o;
  o.model = {.dtype = dtype_of_option(options), .batch = batch, .tokens = tokens};
  o.trained = Trained::nothing;
  arena_ = std::make_unique<Arena>(*device_, plan_memory(config_, o, 1).bytes);
  engine_ = std::make_unique<Engine>(config_, o, *device_, *arena_, *communicator_);
  load(engine_->parameters(), *device_, file, options);
}

DecoderInference::DecoderInference(const InferenceOptions& options)
    : dtype_(dtype_of_option(options)),
      device_(make_device(options)),
      communicator_(make_single_communicator()) {
  const ModelFile file(options.model);
  config_ = config_of(file, options);
  const auto build = [&](Device& device, Arena& arena) {
    parameters_ =
        std::make_unique<ShardedParameters>(describe_parameters(config_), Trained::nothing, dtype_,
                                            device.ops(), arena, *communicator_, clock_);
  };
  Arena measure;
  build(*make_dry_device(), measure);
  arenas_.push_back(std::make_unique<Arena>(*device_, measure.high_water()));
  build(*device_, *arenas_.back());
  load(*parameters_, *device_, file, options);
}

std::unique_ptr<Decoder> DecoderInference::make_decoder(const DecoderSizes& sizes) {
  const auto build = [&](Device& device, Arena& arena) {
    return std::make_unique<Decoder>(config_, dtype_, sizes, device, arena, *parameters_);
  };
  // Once over, on a device that computes nothing, to learn how much memory reading takes.
  const auto dry = make_dry_device();
  Arena measure;
  {
    const auto decoder = build(*dry, measure);
    const std::vector<int32_t> tokens(static_cast<size_t>(sizes.batch * sizes.read_at_once), 0);
    std::vector<float> nll(static_cast<size_t>(sizes.batch));
    decoder->read(tokens.data(), sizes.read_at_once);
    decoder->next_nll(tokens.data(), nll.data());
  }
  arenas_.push_back(std::make_unique<Arena>(*device_, measure.high_water()));
  return build(*device_, *arenas_.back());
}

}  // namespace supra
