#pragma once
// A training run on this rank, from the recipe to the last checkpoint. What can be wrong is found
// before anything is computed or written; what goes wrong later goes wrong on all ranks together.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launch/ranks.h"
#include "launch/recipe/recipe.h"
#include "launch/report/run_log.h"
#include "launch/train/sample_log.h"
#include "launch/train/step_guard.h"
#include "launch/train/stop_signal.h"
#include "model/model_file.h"
#include "parallel/checkpoint/catalog.h"
#include "parallel/checkpoint/writer.h"
#include "parallel/communication/mpi_communicator.h"
#include "parallel/data/sample_order.h"
#include "parallel/data/token_file.h"
#include "parallel/watch/watchdog.h"

namespace supra {

struct TrainOptions {
  std::string recipe;
  std::vector<std::string> overrides;
};

class Run final : public RankProgram {
 public:
  Run(MpiSession& session, TrainOptions options);

  /// `done`, or `requeue` when a signal stopped it: then a checkpoint holds all it has done.
  ExitCode run() override;

  /// What the ranks' collectives show.
  std::string explain_failure() override;

 private:
  bool leader() const { return host_->rank() == 0; }
  int64_t window_size() const { return recipe_.data.sequence_length + 1; }
  void say(const std::string& text);

  // Before the first step, in this order.
  void start_watch();
  void open();
  void check_hosts();
  void resume();
  void check_same_run();
  void make_engine();
  void load();
  void measure_peak();
  void open_logs();
  /// Drops what the samples' log says of steps that will be done again.
  void open_sample_log();

  ExitCode train();
  /// Batches, until one of them has been trained on.
  void step();
  /// This rank's share, in order, of the next global batch.
  struct Batch {
    int64_t first_sample = 0;  ///< number of its first window in the run's order
    std::vector<int64_t> windows = {};
    std::vector<int32_t> tokens = {};  ///< [windows, T+1]
  };
  Batch read_batch();
  /// Passes the batch over that would be the next step's, as the recipe says; throws when it says
  /// stop.
  void pass_over(const Anomaly& anomaly);
  void go_back();
  void validate();

  /// Collective. Bad input unless every byte of the checkpoint is as it was written.
  void require_whole(const std::string& checkpoint);
  void load_state(const std::string& checkpoint);
  void save();
  void wait_for_checkpoint();
  void log_outcome(const CheckpointOutcome& outcome);
  /// Logs it; throws when there is no checkpoint and the recipe says stop.
  void note(const CheckpointOutcome& outcome);

  /// Whether any rank has been told to: the same on all.
  bool asked_to_stop();
  void finish(bool stopped);

  MpiSession& session_;
  const TrainOptions options_;
  StopSignal stop_signal_;
  Recipe recipe_;
  std::unique_ptr<Communicator> host_;  ///< until there is a watchdog, and for it
  std::unique_ptr<Watchdog> watchdog_;
  std::unique_ptr<Communicator> communicator_;  ///< of the hosts, watched
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> nccl_;  ///< of the CUDA device
  std::unique_ptr<ModelFile> base_;
  ModelConfig config_;
  std::unique_ptr<TokenFile> train_, validation_;
  std::unique_ptr<SampleOrder> order_;
  int64_t validation_windows_ = 0;
  int64_t steps_ = 0;
  std::string resume_;  ///< the checkpoint gone on from; empty: none
  RunState state_;
  int64_t saved_step_ = -1;  ///< of the last checkpoint begun or gone on from
  std::optional<CheckpointEntry> last_checkpoint_;  ///< written or gone on from
  double peak_flops_ = 0, flops_per_token_ = 0;
  MemoryPlan plan_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<StepGuard> guard_;
  std::unique_ptr<CheckpointWriter> writer_;
  std::unique_ptr<RunLog> log_;
  std::unique_ptr<SampleLog> sample_log_;
};

}  // namespace supra
