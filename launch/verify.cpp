#include <chrono>
#include <filesystem>
#include <memory>

#include <nlohmann/json.hpp>

#include "launch/commands.h"
#include "launch/ranks.h"
#include "launch/report/run_log.h"
#include "launch/report/table.h"
#include "parallel/checkpoint/catalog.h"

namespace supra {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

struct VerifyOptions {
  std::string path;
  bool json = false;
};

/// The checkpoints that a path stands for: itself, or all of a run, oldest first.
std::vector<std::string> checkpoints_at(const std::string& path) {
  std::error_code ignored;
  if (!fs::is_directory(fs::path(path) / "checkpoints", ignored)) return {path};
  std::vector<std::string> folders;
  for (const CheckpointEntry& entry : list_checkpoints(path)) folders.push_back(entry.folder);
  if (folders.empty()) fail_input("run {} has no checkpoint", path);
  std::reverse(folders.begin(), folders.end());
  return folders;
}

OrderedJson to_json(const std::string& checkpoint, const Verification& found) {
  return {{"checkpoint", checkpoint}, {"whole", found.damage.empty()}, {"files", found.files},
          {"tensors", found.tensors}, {"bytes", found.bytes},          {"damage", found.damage}};
}

void print(const std::string& checkpoint, const Verification& found, double seconds) {
  if (found.damage.empty()) {
    fmt::print("{}: whole; {} files, {} tensors, {} in {:.1f} s\n", checkpoint, found.files,
               found.tensors, format_bytes(found.bytes), seconds);
    return;
  }
  fmt::print("{}: damaged\n", checkpoint);
  for (const std::string& line : found.damage) fmt::print("  {}\n", line);
}

/// Rank 0 shows how far it is: the others have as much to read.
Verification verify(const std::string& checkpoint, Communicator& communicator) {
  if (communicator.rank() != 0) return verify_checkpoint(checkpoint, communicator);
  Percentage percentage("verifying");
  return verify_checkpoint(checkpoint, communicator,
                           [&](uint64_t done, uint64_t total) { percentage.show(done, total); });
}

ExitCode run_verify(const VerifyOptions& options, MpiSession& session) {
  const auto communicator = make_mpi_communicator();
  const bool speaks = session.rank() == 0;
  std::vector<std::string> checkpoints;
  together(*communicator, [&] { checkpoints = checkpoints_at(options.path); });
  std::vector<std::string> damaged;
  OrderedJson all = OrderedJson::array();
  for (const std::string& checkpoint : checkpoints) {
    const auto began = std::chrono::steady_clock::now();
    const Verification found = verify(checkpoint, *communicator);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    if (!found.damage.empty()) damaged.push_back(checkpoint);
    if (options.json) {
      all.push_back(to_json(checkpoint, found));
    } else if (speaks) {
      print(checkpoint, found, took.count());
    }
  }
  if (options.json && speaks) fmt::print("{}\n", all.dump());
  if (damaged.empty()) return ExitCode::done;
  throw AgreedError(ExitCode::bad_input,
                    fmt::format("{} of {} checkpoints damaged; go on from one that is whole",
                                damaged.size(), checkpoints.size()));
}

}  // namespace

void add_verify_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<VerifyOptions>();
  CLI::App* command = app.add_subcommand(
      "verify",
      "Re-read every byte of a checkpoint against its checksums, and name what is damaged.");
  command
      ->add_option("CHECKPOINT", options->path,
                   "Folder of a checkpoint, its index.h5, or a run folder: all its checkpoints")
      ->required();
  command->add_flag("--json", options->json, "Print one JSON array");
  command->callback([options, &action] {
    action = [options] {
      return run_on_ranks([&](MpiSession& session) { return run_verify(*options, session); });
    };
  });
}

}  // namespace supra
