#include "launch/train/run.h"

#include <algorithm>
#include <chrono>

#include <fmt/ranges.h>

#include "launch/recipe/options.h"
#include "launch/train/setup.h"
#include "model/flops.h"
#include "optim/schedule.h"
#include "parallel/communication/nccl_communicator.h"
#include "parallel/load_weights.h"
#include "parallel/preflight/check_nodes.h"
#include "runtime/product_rate.h"
#include "runtime/random.h"

namespace supra {
namespace {

/// Going on means the same samples in the same order, and moments for what is trained.
void check_resumption(const Recipe& now, const RunState& state, int64_t windows) {
  const Recipe then = parse_recipe(state.recipe, "the checkpoint's recipe");
  const auto check = [](std::string_view key, const auto& was, const auto& is) {
    if (was == is) return;
    fail_input(
        "{} was {} in the run to resume and is {} now; keep it, or begin a new run with "
        "model.base set to the checkpoint",
        key, was, is);
  };
  check("data.sequence_length", then.data.sequence_length, now.data.sequence_length);
  check("data.seed", then.data.seed, now.data.seed);
  check("the number of windows in data.train", state.windows, windows);
  check("train.train", name_of(then.train.train), name_of(now.train.train));
}

}  // namespace

Run::Run(MpiSession& session, TrainOptions options)
    : session_(session), options_(std::move(options)), host_(make_mpi_communicator()) {}

ExitCode Run::run() {
  together(*host_, [&] { recipe_ = load_recipe(options_.recipe, options_.overrides); });
  start_watch();
  together(*communicator_, [&] { open(); });
  check_hosts();
  resume();
  together(*communicator_, [&] { check_same_run(); });
  if (recipe_.train.device == DeviceKind::cuda) {
    nccl_ = watchdog_->watch(make_nccl_communicator(*device_), "nccl");
  }
  together(*communicator_, [&] { make_engine(); });
  together(*communicator_, [&] { load(); });
  measure_peak();
  open_logs();
  try {
    return train();
  } catch (const AgreedError&) {
    // All ranks stop here, and a checkpoint that has begun is still worth having.
    if (writer_->pending()) log_outcome(*writer_->wait());
    throw;
  }
}

ExitCode Run::train() {
  if (state_.step == 0) validate();
  bool stopped = false;
  while (state_.step < steps_ && !stopped) {
    step();
    const bool last = state_.step == steps_;
    const auto due = [&](int64_t every) { return last || (every && state_.step % every == 0); };
    if (due(recipe_.train.validate_every)) validate();
    if (const auto outcome = writer_->poll()) note(*outcome);
    stopped = asked_to_stop() && !last;
    if (stopped || due(recipe_.checkpoint.every)) save();
  }
  wait_for_checkpoint();
  const int64_t kept = last_checkpoint_ ? last_checkpoint_->step : 0;
  if (kept != state_.step) {
    throw AgreedError(ExitCode::internal,
                      fmt::format("there is no checkpoint of step {}, the last one: what was done "
                                  "since step {} is lost. Make room, then resume",
                                  state_.step, kept));
  }
  finish(stopped);
  return stopped ? ExitCode::requeue : ExitCode::done;
}

std::string Run::explain_failure() {
  return watchdog_ ? watchdog_->explain() : std::string();
}

void Run::say(const std::string& text) {
  if (!leader()) return;
  if (log_) {
    log_->say(text);
  } else {
    fmt::print("{}\n", text);
  }
}

void Run::start_watch() {
  watchdog_ = std::make_unique<Watchdog>(watchdog_options(recipe_), *host_);
  communicator_ = watchdog_->watch(make_mpi_communicator(), "mpi");
}

void Run::open() {
  const DataRecipe& data = recipe_.data;
  device_ = make_training_device(recipe_, session_);
  check_batch(recipe_.train.global_batch, recipe_.train.micro_batch, communicator_->size());
  if (!recipe_.model.base.empty()) base_ = std::make_unique<ModelFile>(recipe_.model.base);
  config_ = resolve_model(recipe_, base_ ? std::optional(base_->config()) : std::nullopt);
  train_ = std::make_unique<TokenFile>(data.train, config_.vocabulary);
  order_ = std::make_unique<SampleOrder>(static_cast<uint64_t>(data.seed),
                                         train_->windows(data.sequence_length));
  if (!data.validation.empty()) {
    validation_ = std::make_unique<TokenFile>(data.validation, config_.vocabulary);
    validation_windows_ = validation_->windows(data.sequence_length);
    if (data.validation_sequences > 0) {
      validation_windows_ = std::min(validation_windows_, data.validation_sequences);
    }
  }
  guard_ = std::make_unique<StepGuard>(recipe_.watch);
  steps_ = total_steps(recipe_);
  state_.windows = train_->windows(data.sequence_length);
}

void Run::check_hosts() {
  if (!recipe_.watch.check_node) return;
  const std::string& folder = recipe_.run.folder;
  together(*communicator_, [&] {
    if (leader()) make_run_folder(folder);
  });
  say("measuring hosts, disks and network");
  check_nodes(*device_, {.folder = folder, .blame = folder});
}

void Run::resume() {
  const std::string& from = recipe_.run.resume;
  if (from == "none") return;
  if (from == "latest") {
    const auto found = find_latest_checkpoint(recipe_.run.folder, *communicator_,
                                              [&](const std::string& text) { say(text); });
    resume_ = found.value_or("");
    if (!found) say(fmt::format("no checkpoint in {}: the run begins anew", recipe_.run.folder));
  } else {
    resume_ = from;
    require_whole(resume_);
  }
  if (resume_.empty()) return;
  together(*communicator_, [&] {
    load_state(resume_);
    if (!leader() || from == "latest") return;
    // They would be taken for the latest of this run.
    const auto there = list_checkpoints(recipe_.run.folder);
    if (!there.empty() && there.front().step > state_.step) {
      fail_input(
          "run.folder {} holds checkpoints of later steps than {}, up to {}: choose another folder "
          "for a run that goes another way, or remove them",
          recipe_.run.folder, state_.step, there.front().step);
    }
  });
}

void Run::require_whole(const std::string& checkpoint) {
  const Verification found = verify_checkpoint(checkpoint, *communicator_);
  if (found.damage.empty()) return;
  throw AgreedError(ExitCode::bad_input,
                    fmt::format("checkpoint {} is damaged: {}; resume from another one", checkpoint,
                                fmt::join(found.damage, "; ")));
}

void Run::load_state(const std::string& checkpoint) {
  const int64_t windows = state_.windows;
  state_ = read_run_state(checkpoint, config_);
  check_resumption(recipe_, state_, windows);
  guard_->restore(state_.losses);
  last_checkpoint_ = CheckpointEntry{checkpoint, state_.step};
  saved_step_ = state_.step;
}

/// Ranks that read different files would train on different things without noticing.
void Run::check_same_run() {
  const std::string run = fmt::format("{} {} {} {} {}", to_toml(recipe_), to_json(config_), steps_,
                                      state_.step, state_.windows);
  const auto all = communicator_->gather_values(RandomStream(0, run).bits(0));
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r] != all[0]) {
      fail_input(
          "rank {} has another recipe, base, token file or checkpoint before it than rank 0; "
          "they must lie where all ranks see the same files",
          r);
    }
  }
}

void Run::make_engine() {
  const EngineOptions options = engine_options(recipe_);
  plan_ = plan_memory(config_, options, communicator_->size());
  // A host's memory holds what checkpoints are staged in; beside the arena a GPU holds the ops'
  // scratch, NCCL's buffers and the program itself.
  const size_t beside =
      recipe_.train.device == DeviceKind::cpu
          ? CheckpointWriter::staging_bytes(checkpoint_options(recipe_), plan_.state_bytes)
          : size_t{2} << 30;
  require_memory(recipe_, session_, *device_, plan_, beside);
  arena_ = std::make_unique<Arena>(*device_, plan_.bytes);
  Communicator& between_devices = nccl_ ? *nccl_ : *communicator_;
  engine_ = std::make_unique<Engine>(config_, options, *device_, *arena_, between_devices);
  writer_ = std::make_unique<CheckpointWriter>(checkpoint_options(recipe_), config_,
                                               engine_->parameters(), *device_, *communicator_);
}

void Run::load() {
  if (!resume_.empty()) {
    load_checkpoint(resume_, engine_->parameters(), *device_, *communicator_);
  } else {
    load_weights(engine_->parameters(), *device_, base_.get(),
                 static_cast<uint64_t>(recipe_.train.init_seed));
  }
  base_.reset();
}

/// The products that all ranks together can do, measured while all of them do.
void Run::measure_peak() {
  const DType dtype = engine_options(recipe_).model.dtype;
  for (const double rate : communicator_->gather_values(measure_product_rate(*device_, dtype))) {
    peak_flops_ += rate;
  }
  flops_per_token_ =
      training_flops_per_token(config_, engine_->parameters().units(), recipe_.data.sequence_length,
                               recipe_.train.train == Trainable::new_weights);
}

void Run::open_logs() {
  const std::string& folder = recipe_.run.folder;
  together(*communicator_, [&] {
    if (!leader()) return;
    make_run_folder(folder);
    // What a write that was killed left may be what the disk has no room for.
    if (recipe_.run.resume != "none") prune_checkpoints(folder, 0, 0, state_.step);
    prepare_run_folder(folder, to_toml(recipe_), recipe_.run.resume != "none");
    log_ = std::make_unique<RunLog>(folder, state_.step);
    log_->start(
        {.step = state_.step,
         .steps = steps_,
         .ranks = communicator_->size(),
         .device = device_->description(),
         .parameters = count_parameters(engine_->parameters().units()),
         .trained_parameters = engine_->parameters().trained_parameters(),
         .memory = plan_.table,
         .staging = CheckpointWriter::staging_bytes(checkpoint_options(recipe_), plan_.state_bytes),
         .recipe_hash = recipe_hash(recipe_)});
    if (!resume_.empty()) log_->say(fmt::format("resumed from {}", resume_));
  });
  open_sample_log();
}

void Run::open_sample_log() {
  sample_log_.reset();
  together(*communicator_, [&] {
    if (leader()) SampleLog::drop_after(recipe_.run.folder, state_.step);
  });
  if (!recipe_.run.log_samples) return;
  together(*communicator_, [&] {
    sample_log_ = std::make_unique<SampleLog>(recipe_.run.folder, communicator_->rank());
  });
}

Run::Batch Run::read_batch() {
  const PhaseClock::Span span(engine_->clock(), Phase::data);
  const int64_t mine = recipe_.train.global_batch / communicator_->size();
  Batch batch{.first_sample = state_.samples + communicator_->rank() * mine};
  batch.windows.resize(static_cast<size_t>(mine));
  batch.tokens.resize(static_cast<size_t>(mine * window_size()));
  together(*communicator_, [&] {
    for (int64_t i = 0; i < mine; ++i) {
      const int64_t window = order_->window(batch.first_sample + i);
      batch.windows[static_cast<size_t>(i)] = window;
      train_->read_window(window, recipe_.data.sequence_length,
                          batch.tokens.data() + i * window_size());
    }
  });
  return batch;
}

void Run::step() {
  const auto began = std::chrono::steady_clock::now();
  Batch batch;
  StepResult result;
  for (;;) {
    watchdog_->begin(fmt::format("step {}", state_.step + 1));
    batch = read_batch();
    result = engine_->compute_gradients(batch.tokens);
    const std::optional<Anomaly> anomaly = guard_->judge(result);
    if (!anomaly) break;
    pass_over(*anomaly);
  }
  const double lr = learning_rate_at({.learning_rate = recipe_.train.learning_rate,
                                      .min_learning_rate = recipe_.train.min_learning_rate,
                                      .warmup_steps = recipe_.train.warmup_steps,
                                      .total_steps = steps_},
                                     state_.step);
  engine_->update(result, lr, state_.step);
  guard_->accept(result.loss.cross_entropy);
  state_.step += 1;
  state_.tokens += result.loss.tokens;
  state_.samples += recipe_.train.global_batch;
  if (sample_log_) sample_log_->step(state_.step, batch.first_sample, batch.windows);

  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  const PhaseSeconds phases_of_step = engine_->clock().take();
  if (!leader()) return;
  log_->step(
      {.step = state_.step,
       .tokens = state_.tokens,
       .loss = result.loss.cross_entropy,
       .z_loss = result.loss.z_loss,
       .grad_norm = result.grad_norm,
       .lr = lr,
       .tokens_per_second = static_cast<double>(result.loss.tokens) / seconds,
       .mfu = flops_per_token_ * static_cast<double>(result.loss.tokens) / (seconds * peak_flops_),
       .mfu_peak_flops = peak_flops_,
       .seconds = phases_of_step,
       .memory = plan_.table});
}

void Run::pass_over(const Anomaly& anomaly) {
  const int64_t first = state_.samples, skipped = state_.skipped + 1;
  const auto stop = [&](std::string_view why) {
    throw AgreedError(
        ExitCode::not_finite,
        fmt::format("step {}: {}, in samples {} to {}; {}nothing was updated since: try a lower "
                    "train.learning_rate or a longer warm-up, from the last checkpoint",
                    state_.step + 1, anomaly.what, first, first + recipe_.train.global_batch - 1,
                    why));
  };
  if (anomaly.action == OnAnomaly::stop) stop("");
  if (skipped > recipe_.watch.max_skipped) {
    stop(fmt::format("{} batches were passed over before it, as many as watch.max_skipped allows; ",
                     state_.skipped));
  }
  if (anomaly.action == OnAnomaly::roll_back) go_back();
  // After going back, what was trained on since the checkpoint is passed over too.
  const int64_t first_passed = state_.samples;
  state_.samples = first + recipe_.train.global_batch;
  state_.skipped = skipped;
  saved_step_ = -1;  // a checkpoint of this step would no longer be the same
  if (leader()) {
    log_->anomaly({.action = std::string(name_of(anomaly.action)),
                   .what = anomaly.what,
                   .first_sample = first_passed,
                   .samples = state_.samples - first_passed,
                   .skipped = skipped});
  }
}

void Run::go_back() {
  wait_for_checkpoint();
  watchdog_->pause();  // re-reading a checkpoint takes as long as it takes
  if (!last_checkpoint_) {
    throw AgreedError(ExitCode::not_finite,
                      fmt::format("step {}: the run is to roll back to its last checkpoint, and "
                                  "has none yet; set a smaller checkpoint.every",
                                  state_.step + 1));
  }
  const std::string checkpoint = last_checkpoint_->folder;
  require_whole(checkpoint);
  together(*communicator_, [&] {
    load_state(checkpoint);
    engine_->parameters().forget_gathered();
    load_checkpoint(checkpoint, engine_->parameters(), *device_, *communicator_);
    if (leader()) log_->go_back(state_.step);
  });
  open_sample_log();
}

void Run::validate() {
  if (!validation_) return;
  watchdog_->begin(fmt::format("validation after step {}", state_.step));
  const int64_t batch = recipe_.train.micro_batch, ranks = communicator_->size();
  const int64_t batches = (validation_windows_ + ranks * batch - 1) / (ranks * batch);
  const int64_t first = std::min(validation_windows_, communicator_->rank() * batches * batch);
  const int64_t last = std::min(validation_windows_, first + batches * batch);
  std::vector<int32_t> windows(static_cast<size_t>((last - first) * window_size()));
  together(*communicator_, [&] {
    for (int64_t i = first; i < last; ++i) {
      validation_->read_window(i, recipe_.data.sequence_length,
                               windows.data() + (i - first) * window_size());
    }
  });
  const Loss loss = [&] {
    try {
      return engine_->evaluate(windows, batches);
    } catch (const AgreedError& e) {
      throw AgreedError(e.code(), fmt::format("validation after step {}: {}; resume from an "
                                              "earlier checkpoint with a lower "
                                              "train.learning_rate",
                                              state_.step, e.what()));
    }
  }();
  engine_->clock().take();  // no part of any step
  if (leader()) {
    log_->validation({.step = state_.step, .tokens = state_.tokens, .loss = loss.cross_entropy});
  }
}

void Run::save() {
  if (saved_step_ == state_.step) return;
  wait_for_checkpoint();
  const PhaseClock::Span span(engine_->clock(), Phase::checkpoint);
  watchdog_->begin(fmt::format("checkpoint of step {}", state_.step));
  state_.recipe = to_toml(recipe_);
  state_.commit = run_commit();
  state_.losses = guard_->losses();
  writer_->save(state_);
  saved_step_ = state_.step;
}

void Run::wait_for_checkpoint() {
  const PhaseClock::Span span(engine_->clock(), Phase::checkpoint);
  watchdog_->begin(fmt::format("wait for a checkpoint, after step {}", state_.step));
  if (const auto outcome = writer_->wait()) note(*outcome);
}

void Run::log_outcome(const CheckpointOutcome& outcome) {
  if (!leader()) return;
  log_->checkpoint({.step = outcome.step,
                    .folder = outcome.folder,
                    .error = outcome.error,
                    .warning = outcome.warning,
                    .seconds = outcome.seconds});
}

void Run::note(const CheckpointOutcome& outcome) {
  log_outcome(outcome);
  if (outcome.written()) {
    last_checkpoint_ = CheckpointEntry{outcome.folder, outcome.step};
    return;
  }
  if (saved_step_ == outcome.step) saved_step_ = -1;
  if (recipe_.checkpoint.on_failure == OnFailure::stop) {
    throw AgreedError(ExitCode::internal,
                      fmt::format("no checkpoint of step {}: {}; the checkpoints before it are "
                                  "whole. Make room, then resume; checkpoint.on_failure = "
                                  "\"go_on\" would train on",
                                  outcome.step, outcome.error));
  }
}

bool Run::asked_to_stop() {
  const auto all = communicator_->gather_values(stop_signal_.received());
  const auto told = std::find_if(all.begin(), all.end(), [](int s) { return s != 0; });
  if (told == all.end()) return false;
  say(fmt::format("rank {} was told to stop by signal {}: one more checkpoint", told - all.begin(),
                  *told));
  return true;
}

void Run::finish(bool stopped) {
  watchdog_->pause();
  const auto peaks = communicator_->gather_values(peak_memory());
  if (leader()) {
    log_->finish({.peak_memory = *std::max_element(peaks.begin(), peaks.end()),
                  .workspace = device_->workspace_bytes(),
                  .stopped = stopped});
  }
}

}  // namespace supra
