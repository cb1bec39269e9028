// supra: uptrains transformers into linear-attention RNNs. One file of this folder per subcommand.

#include <cstdio>
#include <exception>

#include "launch/commands.h"

int main(int argc, char** argv) {
  using supra::ExitCode;
  CLI::App app(
      "Turns pretrained transformers into linear-attention RNNs, and trains them at scale.\n"
      "Exit codes: 0 done, 1 internal error, 2 bad input, 3 loss or gradient not finite, 4 "
      "stopped\n"
      "with a checkpoint, 5 bad node, 6 watchdog. docs/exit-codes.md says what to do about each.",
      "supra");
  app.require_subcommand(1);
  supra::Action action;
  supra::add_import_command(app, action);
  supra::add_export_command(app, action);
  supra::add_train_command(app, action);
  supra::add_plan_command(app, action);
  supra::add_score_command(app, action);
  supra::add_generate_command(app, action);
  supra::add_inspect_command(app, action);
  supra::add_verify_command(app, action);
  supra::add_diff_command(app, action);
  supra::add_consolidate_command(app, action);
  supra::add_check_node_command(app, action);
  supra::add_bench_command(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? static_cast<int>(ExitCode::done)
                            : static_cast<int>(ExitCode::bad_input);
  }
  try {
    return static_cast<int>(action());
  } catch (const supra::Error& e) {
    std::fflush(stdout);
    fmt::print(stderr, "supra: {}\n", e.report());
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    std::fflush(stdout);
    fmt::print(stderr, "supra: {}\n", e.what());
    return static_cast<int>(ExitCode::internal);
  }
}
