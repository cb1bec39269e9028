#pragma once
// `supra bench`: measures what the program does on this machine, each subcommand one side of it in
// a file of its own. A subcommand prints a table and, with --json, writes a file that holds every
// figure of the table with what it depends on. docs/benchmarks.md.

#include "launch/commands.h"

namespace supra {

void add_bench_generate_command(CLI::App& bench, Action& action);
void add_bench_ops_command(CLI::App& bench, Action& action);
void add_bench_step_command(CLI::App& bench, Action& action);
void add_bench_collectives_command(CLI::App& bench, Action& action);

}  // namespace supra
