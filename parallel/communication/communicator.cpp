#include "parallel/communication/communicator.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace supra {
namespace {

/// Both the single rank and the dry run: there is nobody to talk to.
class LoneCommunicator final : public Communicator {
 public:
  LoneCommunicator(int size, DeviceKind kind) : size_(size), kind_(kind) {}
  int rank() const override { return 0; }
  int size() const override { return size_; }
  void reserve(Ops&, Arena& arena, int64_t elements) override {
    // NCCL adds on the way; over MPI a rank receives all pieces and adds them itself.
    if (size_ > 1 && kind_ == DeviceKind::cpu)
      arena.allocate(MemoryClass::communication, DType::fp32, {elements});
  }
  Pending all_gather(const Tensor& shard, const Tensor& full, std::string_view) override {
    if (size_ == 1) std::memcpy(full.address(), shard.address(), shard.bytes());
    return {};
  }
  Pending reduce_scatter(const Tensor& full, const Tensor& shard, std::string_view of) override {
    return all_gather(full, shard, of);
  }
  void all_gather_host(const void* mine, size_t bytes, void* all, std::source_location) override {
    for (int r = 0; r < size_; ++r) {
      std::memcpy(static_cast<char*>(all) + static_cast<size_t>(r) * bytes, mine, bytes);
    }
  }
  void broadcast_host(void*, size_t, int, std::source_location) override {}

 private:
  int size_;
  DeviceKind kind_;
};

}  // namespace

std::unique_ptr<Communicator> make_single_communicator() {
  return std::make_unique<LoneCommunicator>(1, DeviceKind::cpu);
}

std::unique_ptr<Communicator> make_dry_communicator(int size, DeviceKind kind) {
  return std::make_unique<LoneCommunicator>(size, kind);
}

std::vector<std::string> gather_lines(Communicator& communicator,
                                      const std::vector<std::string>& mine,
                                      std::source_location where) {
  std::string text;
  for (const std::string& line : mine) text.append(line.c_str(), line.size() + 1);
  const std::vector<size_t> sizes = communicator.gather_values(text.size(), where);
  const size_t most = *std::max_element(sizes.begin(), sizes.end());
  text.resize(most, '\0');
  std::string all(most * sizes.size(), '\0');
  communicator.all_gather_host(text.data(), most, all.data(), where);
  std::vector<std::string> lines;
  for (size_t r = 0; r < sizes.size(); ++r) {
    for (size_t at = r * most; at < r * most + sizes[r]; at += lines.back().size() + 1) {
      lines.emplace_back(all.c_str() + at);
    }
  }
  return lines;
}

void together(Communicator& communicator, const std::function<void()>& work,
              std::source_location where) {
  constexpr int done = -1;
  int code = done;
  std::array<char, 2048> report{};
  const auto failed = [&](ExitCode c, const std::string& text) {
    code = static_cast<int>(c);
    text.copy(report.data(), report.size() - 1);
  };
  try {
    work();
  } catch (const Error& e) {
    failed(e.code(), e.report());
  } catch (const std::exception& e) {
    failed(ExitCode::internal, e.what());
  }
  const std::vector<int> codes = communicator.gather_values(code, where);
  const auto first = std::find_if(codes.begin(), codes.end(), [](int c) { return c != done; });
  if (first == codes.end()) return;
  communicator.broadcast_host(report.data(), report.size(), static_cast<int>(first - codes.begin()),
                              where);
  throw AgreedError(static_cast<ExitCode>(*first), report.data());
}

}  // namespace supra
