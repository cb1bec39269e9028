#include "launch/bench/bench.h"

namespace supra {

void add_bench_command(CLI::App& app, Action& action) {
  CLI::App* bench =
      app.add_subcommand("bench", "Measure the program on this machine: docs/benchmarks.md.");
  bench->require_subcommand(1);
  add_bench_ops_command(*bench, action);
  add_bench_step_command(*bench, action);
  add_bench_collectives_command(*bench, action);
  add_bench_generate_command(*bench, action);
}

}  // namespace supra
