#pragma once
// What a bench writes: one JSON object with its figures, and with what they depend on besides them
// - machine, program, command, date - so that two files can be compared.

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

  /// Says what is measured on, and warns on standard error where other programs keep the machine
  /// busy. One rank, for all.
  void introduce(const Device& device, int ranks = 1);

  /// A member of the object, to be set.
  nlohmann::ordered_json& operator[](const std::string& key) { return json_[key]; }
  const nlohmann::ordered_json& json() const { return json_; }

  /// Writes the object to a file; nothing where `path` is empty.
  void save(const std::string& path) const;

 private:
  nlohmann::ordered_json json_;
  double busy_cores_ = 0;  ///< that others kept busy while nothing was measured
};

/// --json FILE.
void add_json_option(CLI::App& command, std::string& path);

}  // namespace supra
