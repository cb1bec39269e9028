// The input is a recipe and, each after a NUL, the arguments of --set.

#include "launch/recipe/recipe.h"

#include <optional>
#include <string>
#include <vector>

#include "model/parameters.h"
#include "tests/fuzz/targets.h"

namespace supra::fuzz {

void read_recipe(Bytes bytes) {
  std::vector<std::string> texts(1);
  for (const uint8_t byte : bytes) {
    if (byte == 0) {
      texts.emplace_back();
    } else {
      texts.back() += static_cast<char>(byte);
    }
  }
  const std::vector<std::string> overrides(texts.begin() + 1, texts.end());
  may_refuse([&] {
    const Recipe recipe = parse_recipe(texts[0], "recipe.toml", overrides);
    const std::string printed = to_toml(recipe);
    require(parse_recipe(printed, "printed") == recipe, "a recipe reads as printed");
    require(recipe_hash(recipe).size() == 16, "a recipe has a hash");
    require(total_steps(recipe) > 0, "a run has steps");
    may_refuse([&] { check_batch(recipe.train.global_batch, recipe.train.micro_batch, 3); });
    may_refuse([&] {
      const bool has_base = !recipe.model.base.empty();
      const ModelConfig config =
          resolve_model(recipe, has_base ? std::optional(ModelConfig()) : std::nullopt);
      require(count_parameters(describe_parameters(config)) > 0, "parameters can be counted");
    });
  });
}

}  // namespace supra::fuzz
