#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <memory>
#include <sys/resource.h>

#include "launch/commands.h"
#include "launch/recipe/engine_options.h"
#include "launch/recipe/recipe.h"
#include "launch/report/run_log.h"
#include "model/flops.h"
#include "model/model_file.h"
#include "optim/schedule.h"
#include "parallel/checkpoint/checkpoint.h"
#include "parallel/communication/mpi_communicator.h"
#include "parallel/communication/nccl_communicator.h"
#include "parallel/data/sample_order.h"
#include "parallel/data/token_file.h"
#include "parallel/engine.h"
#include "parallel/load_weights.h"
#include "runtime/product_rate.h"
#include "runtime/random.h"

namespace supra {
namespace {

struct TrainOptions {
  bool reference = false;
  std::string recipe;
  std::vector<std::string> overrides;
};

/// The checkpoint to go on from; empty: none.
std::string checkpoint_to_resume(const RunRecipe& run) {
  if (run.resume == "none") return {};
  if (run.resume == "latest") return latest_checkpoint(run.folder).value_or("");
  return run.resume;
}

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

size_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

/// A training run on this rank.
class Run {
 public:
  explicit Run(MpiSession& session) : session_(session), communicator_(make_mpi_communicator()) {}

  void run(const TrainOptions& options) {
    together(*communicator_, [&] {
      recipe_ = load_recipe(options.recipe, options.overrides);
      open();
    });
    resume();
    together(*communicator_, [&] { check_same_run(); });
    if (recipe_.train.device == DeviceKind::cuda) nccl_ = make_nccl_communicator(*device_);
    together(*communicator_, [&] { make_engine(); });
    together(*communicator_, [&] { load(); });
    measure_peak();
    together(*communicator_, [&] { open_log(); });
    if (state_.step == 0) validate();
    while (state_.step < steps_) {
      step();
      const bool last = state_.step == steps_;
      const auto due = [&](int64_t every) { return last || (every && state_.step % every == 0); };
      if (due(recipe_.train.validate_every)) validate();
      if (due(recipe_.checkpoint.every)) save();
    }
    finish();
  }

 private:
  bool leader() const { return communicator_->rank() == 0; }
  int64_t window_size() const { return recipe_.data.sequence_length + 1; }

  /// Reads everything that can be wrong before anything is computed or written.
  void open() {
    const DataRecipe& data = recipe_.data;
    if (recipe_.train.device == DeviceKind::cuda) {
      device_ = make_cuda_device(session_.rank_on_host());
    } else {
      const int64_t threads = recipe_.run.threads > 0 ? recipe_.run.threads : session_.threads();
      device_ = make_cpu_device(static_cast<int>(threads));
    }
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
    steps_ = total_steps(recipe_);
    state_.windows = train_->windows(data.sequence_length);
  }

  /// One rank looks for the checkpoint, for all: file systems may show ranks different things.
  void resume() {
    std::array<char, 4096> path{};
    together(*communicator_, [&] {
      if (!leader()) return;
      const std::string found = checkpoint_to_resume(recipe_.run);
      SUPRA_CHECK(found.size() < path.size(), "a checkpoint's path of {} bytes", found.size());
      found.copy(path.data(), path.size() - 1);
    });
    communicator_->broadcast_host(path.data(), path.size(), 0);
    resume_ = path.data();
    if (resume_.empty()) return;
    together(*communicator_, [&] {
      const int64_t windows = state_.windows;
      state_ = read_run_state(resume_, config_);
      check_resumption(recipe_, state_, windows);
    });
  }

  /// Ranks that read different files would train on different things without noticing.
  void check_same_run() {
    const std::string run = fmt::format("{} {} {} {} {}", to_toml(recipe_), to_json(config_),
                                        steps_, state_.step, state_.windows);
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

  void make_engine() {
    const EngineOptions options = engine_options(recipe_);
    plan_ = plan_memory(config_, options, communicator_->size());
    // A GPU is a rank's own; a host's memory is shared.
    const bool shared = recipe_.train.device == DeviceKind::cpu;
    const size_t available =
        device_->available_bytes() / (shared ? static_cast<size_t>(session_.ranks_on_host()) : 1);
    // Beside the arena a GPU holds the ops' scratch, NCCL's buffers and the program itself.
    const size_t beside = shared ? 0 : size_t{2} << 30;
    if (available && plan_.bytes + beside > available) {
      fail_input(
          "a rank needs {} of memory, and there is {} for each:\n{}"
          "use more ranks, a smaller train.micro_batch, or train.recompute = \"block\"",
          format_bytes(plan_.bytes + beside), format_bytes(available),
          memory_report(plan_.table, communicator_->size()));
    }
    arena_ = std::make_unique<Arena>(*device_, plan_.bytes);
    engine_ = std::make_unique<Engine>(config_, options, *device_, *arena_,
                                       nccl_ ? *nccl_ : *communicator_);
  }

  /// The products that all ranks together can do, measured while all of them do.
  void measure_peak() {
    const DType dtype = engine_options(recipe_).model.dtype;
    for (const double rate : communicator_->gather_values(measure_product_rate(*device_, dtype))) {
      peak_flops_ += rate;
    }
    flops_per_token_ = training_flops_per_token(config_, engine_->parameters().units(),
                                                recipe_.data.sequence_length,
                                                recipe_.train.train == Trainable::new_weights);
  }

  void load() {
    if (!resume_.empty()) {
      load_checkpoint(resume_, engine_->parameters(), *device_, *communicator_);
    } else {
      load_weights(engine_->parameters(), *device_, base_.get(),
                   static_cast<uint64_t>(recipe_.train.init_seed));
    }
    base_.reset();
  }

  void open_log() {
    if (!leader()) return;
    const std::string& folder = recipe_.run.folder;
    prepare_run_folder(folder, to_toml(recipe_), recipe_.run.resume != "none");
    log_ = std::make_unique<RunLog>(folder, state_.step);
    log_->start({.step = state_.step,
                 .steps = steps_,
                 .ranks = communicator_->size(),
                 .device = device_->description(),
                 .parameters = count_parameters(engine_->parameters().units()),
                 .trained_parameters = engine_->parameters().trained_parameters(),
                 .memory = plan_.table,
                 .recipe_hash = recipe_hash(recipe_)});
    if (!resume_.empty()) log_->say(fmt::format("resumed from {}", resume_));
  }

  /// This rank's windows of the step to come: its share, in order, of the global batch.
  std::vector<int32_t> read_batch() {
    const PhaseClock::Span span(engine_->clock(), Phase::data);
    const int64_t mine = recipe_.train.global_batch / communicator_->size();
    std::vector<int32_t> windows(static_cast<size_t>(mine * window_size()));
    together(*communicator_, [&] {
      for (int64_t i = 0; i < mine; ++i) {
        const int64_t sample = state_.samples + communicator_->rank() * mine + i;
        train_->read_window(order_->window(sample), recipe_.data.sequence_length,
                            windows.data() + i * window_size());
      }
    });
    return windows;
  }

  /// Runs what may find a loss or gradient that is not finite, and says at which step.
  template <class F>
  auto finite(const F& f) -> decltype(f()) {
    try {
      return f();
    } catch (const AgreedError& e) {
      throw AgreedError(
          e.code(), fmt::format("step {}: {}; nothing was updated since: try a lower "
                                "train.learning_rate or a longer warm-up, from the last checkpoint",
                                state_.step + 1, e.what()));
    }
  }

  void step() {
    const auto began = std::chrono::steady_clock::now();
    const double lr = learning_rate_at({.learning_rate = recipe_.train.learning_rate,
                                        .min_learning_rate = recipe_.train.min_learning_rate,
                                        .warmup_steps = recipe_.train.warmup_steps,
                                        .total_steps = steps_},
                                       state_.step);
    const std::vector<int32_t> batch = read_batch();
    const StepResult result = finite([&] { return engine_->step(batch, lr, state_.step); });
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    state_.step += 1;
    state_.tokens += result.loss.tokens;
    state_.samples += recipe_.train.global_batch;
    const PhaseSeconds phases_of_step = engine_->clock().take();
    if (!leader()) return;
    log_->step({.step = state_.step,
                .tokens = state_.tokens,
                .loss = result.loss.cross_entropy,
                .z_loss = result.loss.z_loss,
                .grad_norm = result.grad_norm,
                .lr = lr,
                .tokens_per_second = static_cast<double>(result.loss.tokens) / seconds,
                .mfu = flops_per_token_ * static_cast<double>(result.loss.tokens) /
                       (seconds * peak_flops_),
                .mfu_peak_flops = peak_flops_,
                .seconds = phases_of_step,
                .memory = plan_.table});
  }

  void validate() {
    if (!validation_) return;
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
    const Loss loss = finite([&] { return engine_->evaluate(windows, batches); });
    engine_->clock().take();  // no part of any step
    if (leader()) {
      log_->validation({.step = state_.step, .tokens = state_.tokens, .loss = loss.cross_entropy});
    }
  }

  void save() {
    const PhaseClock::Span span(engine_->clock(), Phase::checkpoint);
    state_.recipe = to_toml(recipe_);
    state_.commit = run_commit();
    const std::string folder = save_checkpoint(recipe_.run.folder, config_, state_,
                                               engine_->parameters(), *device_, *communicator_);
    if (leader()) log_->say(fmt::format("checkpoint {}", folder));
  }

  void finish() {
    const auto peaks = communicator_->gather_values(peak_memory());
    if (leader())
      log_->finish({.peak_memory = *std::max_element(peaks.begin(), peaks.end()),
                    .workspace = device_->workspace_bytes()});
  }

  MpiSession& session_;
  std::unique_ptr<Communicator> communicator_;
  Recipe recipe_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> nccl_;  ///< of the CUDA device; `communicator_` stays the host's
  std::unique_ptr<ModelFile> base_;
  ModelConfig config_;
  std::unique_ptr<TokenFile> train_, validation_;
  std::unique_ptr<SampleOrder> order_;
  int64_t validation_windows_ = 0;
  int64_t steps_ = 0;
  std::string resume_;  ///< the checkpoint gone on from; empty: none
  RunState state_;
  double peak_flops_ = 0, flops_per_token_ = 0;
  MemoryPlan plan_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<RunLog> log_;
};

ExitCode run_train(const TrainOptions& options) {
  if (options.reference) {
    fmt::print("{}", recipe_reference());
    return ExitCode::done;
  }
  if (options.recipe.empty()) fail_input("which recipe? supra train RECIPE.toml");
  MpiSession session;
  // Outlives the handlers: nothing that a collective under way may still use goes before the ranks
  // are told.
  Run run(session);
  const auto alone = [&](ExitCode code, const std::string& report) {
    fmt::print(stderr, "supra: {}\n", report);
    if (session.size() > 1) session.abort(static_cast<int>(code));
    return code;
  };
  try {
    run.run(options);
    return ExitCode::done;
  } catch (const AgreedError& e) {
    std::fflush(stdout);
    if (session.rank() == 0) fmt::print(stderr, "supra: {}\n", e.what());
    return e.code();
  } catch (const Error& e) {
    return alone(e.code(), e.report());
  } catch (const std::exception& e) {
    return alone(ExitCode::internal, fmt::format("rank {}: {}", session.rank(), e.what()));
  }
}

}  // namespace

void add_train_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<TrainOptions>();
  CLI::App* command = app.add_subcommand(
      "train", "Train as a recipe says; alone, or on many ranks under mpirun or srun.");
  command->add_option("RECIPE.toml", options->recipe, "Keys: docs/recipe-reference.md");
  command->add_flag("--recipe-reference", options->reference,
                    "Print the reference of all recipe keys instead");
  command->add_option("--set", options->overrides,
                      "section.key=value in place of what the recipe says; may be repeated");
  command->callback([options, &action] { action = [options] { return run_train(*options); }; });
}

}  // namespace supra
