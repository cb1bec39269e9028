#include "model/huggingface/import.h"

#include <memory>

#include "launch/commands.h"
#include "launch/report/progress.h"
#include "launch/report/run_log.h"

namespace supra {
namespace {

struct ImportOptions {
  std::string folder, output;
  bool force = false;
};

ExitCode run_import(const ImportOptions& options) {
  const ImportSummary summary =
      import_hf(options.folder, options.output, options.force, show_percent("importing"));
  const ModelConfig& c = summary.config;
  fmt::print("{}: {}, {} layers, width {}, {} heads ({} kv), {} parameters, {}, {}\n",
             options.output, c.family, c.layers, c.width, c.heads, c.kv_heads, summary.parameters,
             name_of(summary.dtype),
             format_bytes(static_cast<size_t>(summary.parameters) * size_of(summary.dtype)));
  return ExitCode::done;
}

}  // namespace

void add_import_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<ImportOptions>();
  CLI::App* command = app.add_subcommand(
      "import",
      "Turn a Hugging Face folder (Llama, Mistral or OpenLM, safetensors) into a model file.");
  command
      ->add_option("HF_DIR", options->folder,
                   "Folder with config.json and model.safetensors, "
                   "or its shards with model.safetensors.index.json")
      ->required();
  command->add_option("MODEL.h5", options->output, "The model file to write")->required();
  command->add_flag("--force", options->force, "Replace MODEL.h5 if it exists");
  command->callback([options, &action] { action = [options] { return run_import(*options); }; });
}

}  // namespace supra
