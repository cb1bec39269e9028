#include "parallel/preflight/measure_host.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>
#include <vector>

#include "parallel/hosts.h"
#include "runtime/random.h"

namespace supra {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) {
  return std::chrono::duration<double>(Clock::now() - began).count();
}

/// A square matrix of integers from -8 to 7, on the host and on a device.
class IntegerMatrix {
 public:
  IntegerMatrix(Device& device, DType dtype, int64_t n, std::string_view name)
      : n_(n), buffer_(device, static_cast<size_t>(n * n) * size_of(dtype)) {
    const RandomStream random(0, name);
    for (int64_t i = 0; i < n * n; ++i) {
      values_.push_back(static_cast<int64_t>(random.bits(static_cast<uint64_t>(i)) % 16) - 8);
    }
    tensor_ = Tensor(buffer_.address(), dtype, {n, n});
    if (dtype == DType::bf16) {
      copy_in<bf16>(device);
    } else {
      copy_in<float>(device);
    }
  }
  const Tensor& tensor() const { return tensor_; }

  /// The product with a vector; of the transpose, `transposed`.
  std::vector<int64_t> times(const std::vector<int64_t>& x, bool transposed) const {
    std::vector<int64_t> y(static_cast<size_t>(n_));
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t j = 0; j < n_; ++j) {
        const int64_t value = values_[static_cast<size_t>(i * n_ + j)];
        y[static_cast<size_t>(transposed ? j : i)] +=
            value * x[static_cast<size_t>(transposed ? i : j)];
      }
    }
    return y;
  }

 private:
  template <class T>
  void copy_in(Device& device) {
    std::vector<T> host;
    for (const int64_t value : values_) host.push_back(T(static_cast<float>(value)));
    device.copy_in(host.data(), tensor_);
  }

  int64_t n_;
  Buffer buffer_;
  Tensor tensor_;
  std::vector<int64_t> values_;
};

/// y = x w^T on the device, seen through a random vector r: y r must be x (w^T r), which takes no
/// product of matrices to know (Freivalds 1977). A wrong element goes unnoticed once in 2^20.
bool product_is_exact(Device& device, DType dtype) {
  constexpr int64_t n = 512;
  const IntegerMatrix x(device, dtype, n, "x"), w(device, dtype, n, "w");
  const Buffer products(device, n * n * sizeof(float)), sums(device, sizeof(double));
  const Tensor y(products.address(), DType::fp32, {n, n});
  const Tensor total(sums.address(), DType::fp64, {1});
  device.poison(y);
  device.ops().zero(total);
  device.ops().linear_forward({.x = x.tensor(), .w = w.tensor(), .y = y});
  device.ops().add_sum(y.view({n * n}), total);
  std::vector<float> found(static_cast<size_t>(n * n));
  double found_total = 0;
  device.copy_out(y, found.data());
  device.copy_out(total, &found_total);

  const RandomStream random(0, "r");
  std::vector<int64_t> r, ones(static_cast<size_t>(n), 1);
  for (uint64_t i = 0; i < n; ++i) r.push_back(static_cast<int64_t>(random.bits(i) % (1 << 20)));
  const std::vector<int64_t> expected = x.times(w.times(r, true), false);
  for (int64_t i = 0; i < n; ++i) {
    int64_t row = 0;
    for (int64_t j = 0; j < n; ++j) {
      const float value = found[static_cast<size_t>(i * n + j)];
      // Also refuses NaN, and what no sum of n such products can be.
      if (!(std::abs(value) <= n * 64)) return false;
      row += static_cast<int64_t>(value) * r[static_cast<size_t>(j)];
      if (value != static_cast<float>(static_cast<int64_t>(value))) return false;
    }
    if (row != expected[static_cast<size_t>(i)]) return false;
  }
  int64_t expected_total = 0;
  for (const int64_t row : x.times(w.times(ones, true), false)) expected_total += row;
  return found_total == static_cast<double>(expected_total);
}

/// A file that goes with the object.
class ScratchFile {
 public:
  explicit ScratchFile(std::string path)
      : path_(std::move(path)),
        fd_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) {
    if (fd_ < 0) fail("create");
  }
  ~ScratchFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(path_.c_str());
  }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  /// Returns when the bytes are on disk.
  void append(const std::vector<char>& bytes) {
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = ::write(fd_, bytes.data() + done, bytes.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("write");
      done += static_cast<size_t>(n);
    }
    if (::fsync(fd_) != 0) fail("sync");
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    fail_input("can't {} {}: {}", what, path_, std::strerror(errno));
  }

  std::string path_;
  int fd_;
};

}  // namespace

bool computes_exactly(Device& device) {
  return product_is_exact(device, DType::bf16) && product_is_exact(device, DType::fp32);
}

void measure_disk(const std::string& folder, double seconds, HostMeasures& host) {
  constexpr size_t large = size_t{8} << 20, small = size_t{4} << 10;
  constexpr int most_large = 32, most_small = 64;
  const std::string path = fmt::format("{}/.check-node-{}-{}", folder, host_name(), ::getpid());
  try {
    ScratchFile file(path);
    std::vector<char> piece(large);
    const RandomStream random(0, path);  // so that no disk can compress it
    for (size_t i = 0; i < large; i += sizeof(uint64_t)) {
      const uint64_t bits = random.bits(i);
      std::memcpy(&piece[i], &bits, sizeof(bits));
    }
    const auto began = Clock::now();
    int pieces = 0;
    do {
      file.append(piece);
      ++pieces;
    } while (pieces < most_large && seconds_since(began) < seconds / 2);
    host.disk_rate = static_cast<double>(large) * pieces / seconds_since(began);

    piece.resize(small);
    std::vector<double> syncs;
    do {
      const auto sync_began = Clock::now();
      file.append(piece);
      syncs.push_back(seconds_since(sync_began));
    } while (syncs.size() < most_small && seconds_since(began) < seconds);
    std::nth_element(syncs.begin(), syncs.begin() + static_cast<std::ptrdiff_t>(syncs.size() / 2),
                     syncs.end());
    host.sync_seconds = syncs[syncs.size() / 2];
    host.disk_measured = true;
  } catch (const Error& e) {
    host.disk_fault = e.what();
  }
}

}  // namespace supra
