#include "model/huggingface/export.h"

#include <bit>
#include <limits>
#include <memory>

#include <toml++/toml.h>

#include "launch/commands.h"
#include "launch/report/progress.h"
#include "launch/report/run_log.h"

namespace supra {
namespace {

struct ExportCommand {
  std::string model, folder, dtype;
  ExportOptions options;
};

/// The sequence length that a checkpoint was trained with; a model file has no recipe.
std::optional<int64_t> trained_positions(const ModelFile& model) {
  if (!model.file().has("/", "recipe")) return {};
  try {
    const toml::table recipe = toml::parse(model.file().get_string("/", "recipe"));
    return recipe["data"]["sequence_length"].value<int64_t>();
  } catch (const toml::parse_error& e) {
    fail_input("{}: its recipe is no TOML: {}", model.file().path(), e.description());
  }
}

ExitCode run_export(const ExportCommand& command) {
  const ModelFile model(command.model);
  ExportOptions options = command.options;
  options.positions = trained_positions(model);
  if (!command.dtype.empty()) options.dtype = command.dtype == "bf16" ? DType::bf16 : DType::fp32;
  const ExportSummary summary =
      export_hf(model, command.folder, options, show_percent("exporting"));
  const ModelConfig& c = model.config();
  fmt::print("{}: {}, {} layers, width {}, {} heads ({} kv), {} parameters, {}, {}\n",
             command.folder, summary.layout, c.layers, c.width, c.heads, c.kv_heads,
             summary.parameters, name_of(summary.dtype),
             summary.files == 1 ? "1 file" : fmt::format("{} files", summary.files));
  const bool is_power_of_two = std::has_single_bit(static_cast<uint64_t>(c.heads));
  if (summary.layout == "openlm" && c.linear.slopes == Slopes::lightning && !is_power_of_two) {
    fmt::print(
        "note: OpenLM itself computes lightning slopes only for a power of two of heads, not for "
        "{}; launch/supra_reference.py and `supra import` do for any\n",
        c.heads);
  }
  return ExitCode::done;
}

}  // namespace

void add_export_command(CLI::App& app, Action& action) {
  const auto command = std::make_shared<ExportCommand>();
  CLI::App* sub = app.add_subcommand(
      "export",
      "Turn a model file or a checkpoint into a Hugging Face folder (Llama or Mistral; OpenLM with "
      "linear attention).");
  sub->add_option("CKPT", command->model, "Model file, checkpoint folder or index.h5")->required();
  sub->add_option("HF_DIR", command->folder, "The folder to write: a new one, or an empty one")
      ->required();
  sub->add_option("--dtype", command->dtype,
                  "Precision of the weights; left out, the one they are stored in")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  sub->add_option("--shard-size", command->options.shard_bytes,
                  "Begin another file before one has more bytes than this: 2GB, 512MiB, ...")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::Range(int64_t{1}, std::numeric_limits<int64_t>::max()))
      ->type_name("SIZE")
      ->capture_default_str();
  sub->callback([command, &action] { action = [command] { return run_export(*command); }; });
}

}  // namespace supra
