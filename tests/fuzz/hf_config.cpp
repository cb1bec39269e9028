// The input is a config.json, and, read once more, the config of a model file.

#include "model/huggingface/config.h"
#include "model/parameters.h"
#include "tests/fuzz/targets.h"

namespace supra::fuzz {
namespace {

void use(const ModelConfig& config) {
  require(model_config_from_json(to_json(config), "printed") == config,
          "a config reads as printed");
  require(first_difference(config, config).empty(), "a config equals itself");
  const std::vector<UnitSpec> units = describe_parameters(config);
  require(count_parameters(units) > 0, "parameters can be counted");
}

}  // namespace

void read_hf_config(Bytes bytes) {
  const std::string text(bytes.begin(), bytes.end());
  may_refuse([&] { use(parse_hf_config(text, "config.json").model); });
  may_refuse([&] { use(model_config_from_json(text, "model.h5")); });
}

}  // namespace supra::fuzz
