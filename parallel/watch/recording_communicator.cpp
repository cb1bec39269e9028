#include "parallel/watch/recording_communicator.h"

#include <algorithm>
#include <deque>

namespace supra {
namespace {

class RecordingCommunicator final : public Communicator {
 public:
  RecordingCommunicator(std::unique_ptr<Communicator> inner, std::string name,
                        FlightRecorder& recorder, bool check, std::optional<Fault>& fault)
      : inner_(std::move(inner)),
        name_(std::move(name)),
        recorder_(recorder),
        check_(check),
        fault_(fault),
        index_(recorder.add_communicator(name_)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void reserve(Ops& ops, Arena& arena, int64_t elements) override {
    inner_->reserve(ops, arena, elements);
  }

  Pending all_gather(const Tensor& shard, const Tensor& full, std::string_view of) override {
    if (skips_next()) return {};
    const uint64_t call = enter(Operation::all_gather, shard.bytes(), of);
    return under_way(call, inner_->all_gather(shard, full, of));
  }

  Pending reduce_scatter(const Tensor& full, const Tensor& shard, std::string_view of) override {
    if (skips_next()) return {};
    const uint64_t call = enter(Operation::reduce_scatter, shard.bytes(), of);
    return under_way(call, inner_->reduce_scatter(full, shard, of));
  }

  void check() override { inner_->check(); }
  void abort() noexcept override { inner_->abort(); }

  void all_gather_host(const void* mine, size_t bytes, void* all,
                       std::source_location where) override {
    if (skips_next()) return;
    const uint64_t call = enter(Operation::all_gather_host, bytes, where);
    inner_->all_gather_host(mine, bytes, all, where);
    recorder_.set(call, CollectiveState::done);
  }

  void broadcast_host(void* data, size_t bytes, int root, std::source_location where) override {
    if (skips_next()) return;
    const uint64_t call = enter(Operation::broadcast_host, bytes, where);
    inner_->broadcast_host(data, bytes, root, where);
    recorder_.set(call, CollectiveState::done);
  }

 private:
  /// A call that has been made and not been waited for. Kept here, and used again, so that a
  /// Pending that refers to it takes no memory of its own.
  struct UnderWay {
    uint64_t call = 0;
    Pending inner;
  };

  bool skips_next() {
    if (!fault_ || fault_->collective != recorder_.next_sequence(index_)) return false;
    const FaultAction action = fault_->action;
    fault_.reset();
    suffer(action);
    return action == FaultAction::skip;
  }

  /// `what`: the name of what is moved, or the place of the call.
  template <class What>
  uint64_t enter(Operation operation, size_t bytes, What what) {
    const uint64_t call = recorder_.enter(index_, operation, bytes, what);
    if (check_) compare_calls(call);
    return call;
  }

  /// Throws on every rank when this call is not the same everywhere.
  void compare_calls(uint64_t call) {
    const Collective mine = recorder_.at(call);
    const std::vector<Collective> all = inner_->gather_values(mine);
    const auto same = [](const Collective& a, const Collective& b) {
      return a.sequence == b.sequence && a.same_call(b);
    };
    // The call that most ranks make, and of equally many the first rank's.
    const auto count = [&](const Collective& c) {
      return std::count_if(all.begin(), all.end(), [&](const auto& o) { return same(c, o); });
    };
    const auto usual = std::max_element(
        all.begin(), all.end(), [&](const auto& a, const auto& b) { return count(a) < count(b); });
    const auto other =
        std::find_if(all.begin(), all.end(), [&](const Collective& c) { return !same(c, *usual); });
    if (other == all.end()) return;
    throw AgreedError(
        ExitCode::internal,
        fmt::format("the ranks make different calls on {}: rank {} {}, {} bytes; rank {} {}, {} "
                    "bytes",
                    name_, other - all.begin(), other->name(), other->bytes, usual - all.begin(),
                    usual->name(), usual->bytes));
  }

  Pending under_way(uint64_t call, Pending inner) {
    recorder_.set(call, CollectiveState::under_way);
    if (spare_.empty()) spare_.push_back(&calls_.emplace_back());
    UnderWay* const slot = spare_.back();
    spare_.pop_back();
    slot->call = call;
    slot->inner = std::move(inner);
    return Pending([this, slot] {
      recorder_.set(slot->call, CollectiveState::awaited);
      slot->inner.wait();
      recorder_.set(slot->call, CollectiveState::done);
      spare_.push_back(slot);
    });
  }

  std::unique_ptr<Communicator> inner_;
  std::string name_;
  FlightRecorder& recorder_;
  bool check_;
  std::optional<Fault>& fault_;
  uint8_t index_;
  std::deque<UnderWay> calls_;    ///< as many as were ever under way at once
  std::vector<UnderWay*> spare_;  ///< of those, the ones that can be used again
};

}  // namespace

std::unique_ptr<Communicator> make_recording_communicator(std::unique_ptr<Communicator> inner,
                                                          std::string name,
                                                          FlightRecorder& recorder, bool check,
                                                          std::optional<Fault>& fault) {
  return std::make_unique<RecordingCommunicator>(std::move(inner), std::move(name), recorder, check,
                                                 fault);
}

}  // namespace supra
