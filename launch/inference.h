#pragma once
// A model file opened for computing with it on one rank: what `score` and `generate` share.

#include <memory>
#include <string>
#include <vector>

#include "launch/commands.h"
#include "model/decoder.h"
#include "parallel/engine.h"

namespace supra {

struct InferenceOptions {
  std::string model;
  std::string attention;  ///< "softmax", "linear", or empty: the file's
  std::string dtype = "fp32";
  std::string device = "cpu";
  int64_t init_seed = 0;  ///< of feature maps that the file does not have
  int threads = 0;        ///< 0: all cores
};

/// Adds the options above, but for the model's path, to a subcommand.
void add_inference_options(CLI::App& command, InferenceOptions& options);

/// The device, the model's weights, and the model over them. `batch` sequences of `tokens` at a
/// time.
class Inference {
 public:
  Inference(const InferenceOptions& options, int64_t batch, int64_t tokens);

  Model& model() { return engine_->model(); }
  const ModelConfig& config() const { return config_; }
  Device& device() { return *device_; }

 private:
  ModelConfig config_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> communicator_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Engine> engine_;
};

/// The same for generating: the weights, and decoders over them.
class DecoderInference {
 public:
  explicit DecoderInference(const InferenceOptions& options);

  /// In memory of its own, which is given back with this object, and must not outlive it.
  std::unique_ptr<Decoder> make_decoder(const DecoderSizes& sizes);
  const ModelConfig& config() const { return config_; }
  Device& device() { return *device_; }

 private:
  DType dtype_;
  ModelConfig config_;
  PhaseClock clock_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> communicator_;
  std::vector<std::unique_ptr<Arena>> arenas_;  ///< of the weights, and of each decoder
  std::unique_ptr<ShardedParameters> parameters_;
};

}  // namespace supra
