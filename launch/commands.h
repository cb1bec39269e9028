#pragma once
// The subcommands of `supra`. Each file of this folder adds one to the command line: its options,
// its help, and, when the command line names it, the action to run. main runs the action and turns
// what it throws into an exit code.

#include <functional>

#include <CLI/CLI.hpp>

#include "runtime/error.h"

namespace supra {

using Action = std::function<ExitCode()>;

void add_import_command(CLI::App& app, Action& action);
void add_export_command(CLI::App& app, Action& action);
void add_score_command(CLI::App& app, Action& action);
void add_plan_command(CLI::App& app, Action& action);
void add_train_command(CLI::App& app, Action& action);
void add_inspect_command(CLI::App& app, Action& action);
void add_generate_command(CLI::App& app, Action& action);
void add_verify_command(CLI::App& app, Action& action);
void add_diff_command(CLI::App& app, Action& action);
void add_consolidate_command(CLI::App& app, Action& action);
void add_check_node_command(CLI::App& app, Action& action);
void add_bench_command(CLI::App& app, Action& action);

}  // namespace supra
