// `supra train`: the command line of a training run.

#include <memory>

#include "launch/commands.h"
#include "launch/ranks.h"
#include "launch/train/run.h"

namespace supra {
namespace {

ExitCode run_train(const TrainOptions& options) {
  if (options.recipe.empty()) fail_input("which recipe? supra train RECIPE.toml");
  return run_on_ranks([&](MpiSession& session) -> std::unique_ptr<RankProgram> {
    return std::make_unique<Run>(session, options);
  });
}

}  // namespace

void add_train_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<TrainOptions>();
  const auto reference = std::make_shared<bool>(false);
  const auto print_recipe = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "train", "Train as a recipe says; alone, or on many ranks under mpirun or srun.");
  command->add_option("RECIPE.toml", options->recipe, "Keys: docs/recipe-reference.md");
  command->add_flag("--recipe-reference", *reference,
                    "Print the reference of all recipe keys instead");
  command->add_flag("--print-recipe", *print_recipe,
                    "Print the recipe with overrides and defaults instead");
  command->add_option("--set", options->overrides,
                      "section.key=value in place of what the recipe says; may be repeated");
  command->callback([options, reference, print_recipe, &action] {
    action = [options, reference, print_recipe] {
      if (!*reference && !*print_recipe) return run_train(*options);
      fmt::print("{}", *reference ? recipe_reference()
                                  : to_toml(load_recipe(options->recipe, options->overrides)));
      return ExitCode::done;
    };
  });
}

}  // namespace supra
