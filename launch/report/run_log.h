#pragma once
// The record of a run: metrics.jsonl in its folder, JSON lines that launch/plot.py and other
// programs read, and a readable line of each on standard output. Kept by one rank, for all.

#include <cstdint>
#include <fstream>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "launch/report/progress.h"
#include "runtime/arena.h"
#include "runtime/phase_clock.h"

namespace supra {

struct RunStart {
  int64_t step = 0;   ///< steps done before: where the run was resumed
  int64_t steps = 0;  ///< steps in all
  int ranks = 1;
  std::string device;  ///< Device::description()
  int64_t parameters = 0, trained_parameters = 0;
  MemoryTable memory{};  ///< bytes of one rank
  size_t staging = 0;    ///< bytes of one rank in host memory, for checkpoints
  std::string recipe_hash;
};

struct StepMetrics {
  int64_t step = 0;      ///< steps done, this one included
  int64_t tokens = 0;    ///< tokens trained on so far
  double loss = 0;       ///< mean cross-entropy, nats per token
  double z_loss = 0;     ///< what the z-loss adds to it
  double grad_norm = 0;  ///< before clipping
  double lr = 0;
  double tokens_per_second = 0;
  double mfu = 0;             ///< model-flops utilisation, a fraction of `mfu_peak_flops`
  double mfu_peak_flops = 0;  ///< of all ranks, per second; 0: not known, then neither is written
  PhaseSeconds seconds{};
  MemoryTable memory{};
};

struct ValidationMetrics {
  int64_t step = 0, tokens = 0;
  double loss = 0;
};

/// A batch that is not trained on.
struct AnomalyRecord {
  std::string action;                     ///< "skip" or "roll_back"
  std::string what;                       ///< is wrong with it
  int64_t first_sample = 0, samples = 0;  ///< in the run's order
  int64_t skipped = 0;                    ///< batches passed over so far, this one included
};

struct CheckpointRecord {
  int64_t step = 0;
  std::string folder;
  std::string error;    ///< why there is none; empty: it is written
  std::string warning;  ///< what else went wrong; empty: nothing
  double seconds = 0;   ///< from its beginning until it was durable
};

struct RunEnd {
  size_t peak_memory = 0;  ///< largest resident size any rank's process had, bytes
  size_t workspace = 0;    ///< scratch of the device, bytes
  bool stopped = false;    ///< asked to, before the last step
};

class RunLog {
 public:
  /// Opens `folder`/metrics.jsonl. With `resumed_at` 0 it begins empty; else lines of later steps,
  /// written before the stop, are dropped, and what follows is appended.
  RunLog(const std::string& folder, int64_t resumed_at, Terminal terminal = find_terminal());
  RunLog(const std::string& folder, int64_t resumed_at, Terminal terminal, std::ostream& out);

  /// Once, before the first step.
  void start(const RunStart& run);
  void step(const StepMetrics& metrics);
  void validation(const ValidationMetrics& metrics);
  void anomaly(const AnomalyRecord& anomaly);
  void checkpoint(const CheckpointRecord& checkpoint);
  /// The steps after this one will be done again: what was said of them is dropped.
  void go_back(int64_t step);
  /// Once, at the end.
  void finish(const RunEnd& end);
  /// A line for people only.
  void say(const std::string& text) { progress_.line(text); }

 private:
  void write(const nlohmann::ordered_json& record);
  std::string readable(const StepMetrics& m) const;

  std::string path_;
  std::ofstream file_;
  Progress progress_;
  int64_t step_ = 0, steps_ = 0;
  int ranks_ = 1;
};

/// Makes the folder where there is none; bad input where that cannot be.
void make_run_folder(const std::string& folder);
/// Makes the folder and writes recipe.toml there. A folder that cannot be written is bad input, and
/// so is, unless `resume`, one that holds checkpoints or metrics of steps.
void prepare_run_folder(const std::string& folder, const std::string& recipe_toml, bool resume);

/// A table of bytes by class, of one rank and of all, for people.
std::string memory_report(const MemoryTable& memory, int ranks);
/// "1.50 GiB"
std::string format_bytes(size_t bytes);

/// The commit this program was built from.
std::string run_commit();

}  // namespace supra
