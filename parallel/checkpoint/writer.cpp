#include "parallel/checkpoint/writer.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <future>

#include "parallel/checkpoint/catalog.h"
#include "parallel/checkpoint/index.h"
#include "parallel/checkpoint/shard.h"
#include "parallel/checkpoint/staging.h"
#include "runtime/random.h"

namespace supra {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

/// Unlike that of any other checkpoint, and the same on all ranks.
std::string new_id(const RunState& state, Communicator& communicator) {
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  const RandomStream stream(static_cast<uint64_t>(state.step), state.recipe + state.commit);
  std::string id = checksum_text(stream.bits(static_cast<uint64_t>(now)));
  communicator.broadcast_host(id.data(), id.size(), 0);
  return id;
}

bool is_ready(const std::future<void>& task) {
  return !task.valid() || task.wait_for(std::chrono::seconds(0)) != std::future_status::timeout;
}

}  // namespace

/// A checkpoint goes through two tasks: every rank's thread writes its shard; once all have, that
/// of rank 0 writes the index and gives the folder its name.
struct CheckpointWriter::State {
  CheckpointOptions options;
  ShardedParameters& parameters;
  Device& device;
  Communicator& communicator;

  CheckpointIndex index;  ///< of the checkpoint that is written
  ShardForm form;
  std::optional<IndexForm> index_form;  ///< on rank 0, from the first checkpoint on
  std::vector<Piece> pieces;            ///< of this rank's shard
  StagingRing ring;

  enum class Stage : uint8_t { idle, shards, index } stage = Stage::idle;
  std::string aside, warning;
  ShardRecord record;
  Clock::time_point began;
  std::future<void> task;  ///< of this stage; rank 0 alone has one for the index

  State(const CheckpointOptions& o, const ModelConfig& config, ShardedParameters& p, Device& d,
        Communicator& c)
      : options(o),
        parameters(p),
        device(d),
        communicator(c),
        index{"", config, {}, layout_of(p, c.size())},
        form(index.layout, c.rank()),
        pieces(index.layout.pieces_of_shard(c.rank())),
        ring(CheckpointWriter::staging_bytes(o, p.state_bytes())) {}
  ~State() { ring.close(); }

  bool leads() const { return communicator.rank() == 0; }
  std::string folder() const { return checkpoint_folder_of(options.run_folder, index.state.step); }

  void write_own_shard() {
    try {
      std::error_code failed;
      fs::create_directories(aside, failed);
      if (failed) fail_input("can't create the folder {}: {}", aside, failed.message());
      const std::string path = (fs::path(aside) / shard_file(communicator.rank())).string();
      record = write_shard(path, form, pieces, ring);
    } catch (...) {
      ring.close();  // whoever fills it need not wait
      throw;
    }
  }

  /// Copies what is stored into the ring, in the order in which the shard file wants it.
  void stage_tensors() {
    constexpr int64_t most = int64_t{1} << 22;  // elements at a time, so that writing begins early
    for (const ShardForm::Stretch& stretch : form.stretches()) {
      if (stretch.tensor_bytes == 0) continue;
      const Region& region = parameters.regions()[stretch.region];
      const Tensor tensor = stored_shards(region)[stretch.dataset].tensor;
      const size_t element = size_of(tensor.dtype());
      for (int64_t at = 0; at < tensor.numel();) {
        const int64_t wanted = std::min(most, tensor.numel() - at);
        const auto space = ring.free_space(static_cast<size_t>(wanted) * element);
        if (space.empty()) return;
        const auto n = static_cast<int64_t>(space.size() / element);
        device.copy_out(tensor.slice(at, at + n), space.data());
        ring.filled(space.size());
        at += n;
      }
    }
  }

  /// Gives every rank's checksums to the index.
  void gather_records() {
    CheckpointLayout& layout = index.layout;
    layout.shards = communicator.gather_values(record.file);
    const auto counts = communicator.gather_values(record.pieces.size());
    const size_t most = *std::max_element(counts.begin(), counts.end());
    record.pieces.resize(most);
    std::vector<uint64_t> all(most * counts.size());
    communicator.all_gather_host(record.pieces.data(), most * sizeof(uint64_t), all.data());
    if (!leads()) return;
    for (size_t r = 0; r < counts.size(); ++r) {
      const std::vector<Piece> of_rank = layout.pieces_of_shard(static_cast<int64_t>(r));
      SUPRA_CHECK(of_rank.size() == counts[r] && layout.shards[r].bytes == layout.shards[0].bytes,
                  "rank {} writes another shard than rank 0 expects", r);
      for (size_t i = 0; i < of_rank.size(); ++i) {
        layout.checksum_of(of_rank[i]) = all[r * most + i];
      }
    }
  }

  void finish_checkpoint() {
    if (!index_form) index_form.emplace(index);
    index_form->write((fs::path(aside) / "index.h5").string(), index);
    publish_checkpoint(aside, folder());
    try {
      prune_checkpoints(options.run_folder, options.keep_last, options.keep_every,
                        index.state.step);
    } catch (const std::exception& e) {
      warning = e.what();
    }
  }

  CheckpointOutcome end(const std::string& error) {
    stage = Stage::idle;
    std::error_code ignored;
    if (leads() && !error.empty()) fs::remove_all(aside, ignored);
    const std::vector<std::string> warnings =
        gather_lines(communicator, leads() ? std::vector{warning} : std::vector<std::string>());
    const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
    return {.step = index.state.step,
            .folder = folder(),
            .error = error,
            .warning = warnings.front(),
            .seconds = communicator.gather_values(seconds).front()};
  }
};

CheckpointWriter::CheckpointWriter(const CheckpointOptions& options, const ModelConfig& config,
                                   ShardedParameters& parameters, Device& device,
                                   Communicator& communicator)
    : state_(std::make_unique<State>(options, config, parameters, device, communicator)) {}

CheckpointWriter::~CheckpointWriter() = default;

size_t CheckpointWriter::staging_bytes(const CheckpointOptions& options, size_t state_bytes) {
  constexpr size_t page = 4096;  // a multiple of every element: none lies across the ring's end
  const size_t pages = std::max<size_t>(1, options.staging_bytes / page);
  return std::min(pages * page, state_bytes);
}

void CheckpointWriter::save(const RunState& state) {
  State& s = *state_;
  SUPRA_CHECK(!pending(), "a checkpoint begins while that of step {} is pending",
              s.index.state.step);
  s.began = Clock::now();
  s.index.state = state;
  s.index.id = new_id(state, s.communicator);
  s.form.set_id(s.index.id);
  s.aside = checkpoint_aside(s.options.run_folder, state.step, s.index.id);
  s.warning.clear();
  s.ring.reset();
  s.stage = State::Stage::shards;
  s.task = std::async(std::launch::async, [&s] { s.write_own_shard(); });
  s.stage_tensors();
}

bool CheckpointWriter::pending() const {
  return state_->stage != State::Stage::idle;
}

std::optional<CheckpointOutcome> CheckpointWriter::poll() {
  State& s = *state_;
  if (!pending()) return std::nullopt;
  const auto ready = s.communicator.gather_values(static_cast<int>(is_ready(s.task)));
  if (std::find(ready.begin(), ready.end(), 0) != ready.end()) return std::nullopt;
  try {
    together(s.communicator, [&] {
      if (s.task.valid()) s.task.get();
    });
  } catch (const AgreedError& e) {
    return s.end(e.what());
  }
  if (s.stage == State::Stage::index) return s.end("");
  s.gather_records();
  s.stage = State::Stage::index;
  if (s.leads()) {
    // An HDF5 library that knows no threads is left to the thread that uses it elsewhere.
    const auto when = hdf5::is_threadsafe() ? std::launch::async : std::launch::deferred;
    s.task = std::async(when, [&s] { s.finish_checkpoint(); });
  }
  return std::nullopt;
}

std::optional<CheckpointOutcome> CheckpointWriter::wait() {
  while (pending()) {
    // Not longer, so that no rank waits long for another in a collective, however slow its disk.
    if (state_->task.valid()) state_->task.wait_for(std::chrono::seconds(1));
    if (auto outcome = poll()) return outcome;
  }
  return std::nullopt;
}

}  // namespace supra
