#pragma once
// What a bench writes: one JSON object with its figures, and with what they depend on besides them
// - machine, program, command, date - so that two files can be compared. It warns where other
// programs keep the machine busy.

#include <chrono>
#include <string>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "runtime/device.h"

namespace supra {

class BenchReport {
 public:
  /// `bench` is the subcommand's name. Looks for a fraction of a second at what else the machine
  /// does: begin with it, before the program keeps the machine busy itself.
  explicit BenchReport(const std::string& bench);

  /// Says what is measured on. One rank, for all.
  void introduce(const Device& device, int ranks = 1, int ranks_on_host = 1);

  /// A member of the object, to be set.
  nlohmann::ordered_json& operator[](const std::string& key) { return json_[key]; }

  /// Writes the object to a file, if `path` is not empty.
  void save(const std::string& path);

 private:
  /// CPU time spent until a moment: by everything on this host, and by this process.
  struct Busy {
    std::chrono::steady_clock::time_point at = std::chrono::steady_clock::now();
    double all = 0, own = 0;
    static Busy now();
  };

  /// Cores that programs other than this one kept busy since the last call. Ranks are taken to be
  /// alike.
  double busy_cores_of_others();

  nlohmann::ordered_json json_;
  int ranks_on_host_ = 1;
  Busy last_ = Busy::now();
};

/// --rounds N and --seconds S: how often calls take turns, and how long each.
void add_turn_options(CLI::App& command, int& rounds, double& seconds);
/// --json FILE.
void add_json_option(CLI::App& command, std::string& path);

}  // namespace supra
