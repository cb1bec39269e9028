#include <memory>

#include "launch/commands.h"
#include "launch/recipe/options.h"
#include "launch/report/run_log.h"
#include "model/model_file.h"
#include "parallel/checkpoint/writer.h"

namespace supra {
namespace {

struct PlanOptions {
  std::string recipe;
  std::vector<std::string> overrides;
  std::vector<int> ranks{1};
};

ExitCode run_plan(const PlanOptions& o) {
  const Recipe recipe = load_recipe(o.recipe, o.overrides);
  std::optional<ModelConfig> base;
  if (!recipe.model.base.empty()) base = ModelFile(recipe.model.base).config();
  const ModelConfig config = resolve_model(recipe, base);
  std::vector<MemoryPlan> plans;
  for (const int ranks : o.ranks) {
    check_batch(recipe.train.global_batch, recipe.train.micro_batch, ranks);
    plans.push_back(plan_memory(config, engine_options(recipe), ranks));
  }
  const auto row = [&](std::string_view name, const auto& bytes) {
    fmt::print("| {:<13} |", name);
    for (const MemoryPlan& p : plans) fmt::print(" {:>10} |", bytes(p));
    fmt::print("\n");
  };
  fmt::print("| {:<13} |", "a rank of");
  for (const int ranks : o.ranks) fmt::print(" {:>10} |", ranks);
  fmt::print("\n|{:-<15}|", "");
  for (size_t i = 0; i < plans.size(); ++i) fmt::print("{:->11}:|", "");
  fmt::print("\n");
  for (int c = 0; c < memory_classes; ++c) {
    row(name_of(static_cast<MemoryClass>(c)),
        [&](const MemoryPlan& p) { return format_bytes(p.table[static_cast<size_t>(c)]); });
  }
  row("total", [](const MemoryPlan& p) { return format_bytes(p.bytes); });
  const CheckpointOptions checkpoints = checkpoint_options(recipe);
  row("staging", [&](const MemoryPlan& p) {
    return format_bytes(CheckpointWriter::staging_bytes(checkpoints, p.state_bytes));
  });
  return ExitCode::done;
}

}  // namespace

void add_plan_command(CLI::App& app, Action& action) {
  const auto o = std::make_shared<PlanOptions>();
  CLI::App* command = app.add_subcommand(
      "plan",
      "The memory of a rank that a recipe needs, for several numbers of ranks; trains nothing.");
  command->add_option("RECIPE.toml", o->recipe, "Keys: docs/recipe-reference.md")->required();
  command->add_option("--set", o->overrides,
                      "section.key=value in place of what the recipe says; may be repeated");
  command->add_option("--ranks", o->ranks, "Numbers of ranks, joined by commas")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->callback([o, &action] { action = [o] { return run_plan(*o); }; });
}

}  // namespace supra
