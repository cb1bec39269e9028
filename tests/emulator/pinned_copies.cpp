#include "tests/emulator/pinned_copies.h"

#include <cstring>
#include <memory>
#include <string_view>

#include "tests/emulator/memory.h"
#include "tests/emulator/stream_engine.h"

namespace emu {
namespace {

/// A copy that ran, or is to run, and that the host does not know to be complete.
struct PinnedCopy {
  const EmuStream* stream;
  size_t slot;
  uint32_t sequence;
  char* host;
  size_t bytes;
  bool to_host;
  bool ran = false;
  size_t contents = 0;             ///< from the host: a hash
  bool is_compared = true;         ///< nothing else may have changed them
  std::vector<char> arrived = {};  ///< to the host
};

struct PinnedCopies {
  std::vector<std::shared_ptr<PinnedCopy>> all;
};
PinnedCopies& copies() {
  static auto& self = *new PinnedCopies;
  return self;
}

size_t hash_of(const PinnedCopy& copy) {
  return std::hash<std::string_view>()({copy.host, copy.bytes});
}

bool overlap(const char* a, size_t a_bytes, const char* b, size_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

void show(PinnedCopy& copy) {
  std::memcpy(copy.host, copy.arrived.data(), copy.bytes);
  for (const auto& other : copies().all) {
    if (!other->to_host && overlap(copy.host, copy.bytes, other->host, other->bytes)) {
      other->is_compared = false;
    }
  }
}

void compare(const PinnedCopy& copy) {
  if (copy.is_compared && hash_of(copy) != copy.contents) {
    EMU_FAIL("host memory was changed while a copy from it could still be under way, {}",
             describe(copy.host));
  }
}

/// Keeps an eye on the host memory of a copy from the time of its call on.
std::shared_ptr<PinnedCopy> watch(const EmuStream& stream, uint32_t sequence, char* host,
                                  size_t bytes, bool to_host) {
  auto copy = std::make_shared<PinnedCopy>(
      PinnedCopy{&stream, stream.slot, sequence, host, bytes, to_host});
  bool is_used = false;
  for (const auto& other : copies().all) {
    if (!overlap(host, bytes, other->host, other->bytes)) continue;
    is_used |= other->to_host || !other->ran;
  }
  if (to_host) {
    if (!is_used) std::memset(host, 0xff, bytes);
  } else {
    copy->is_compared = !is_used;
    copy->contents = hash_of(*copy);
  }
  copies().all.push_back(copy);
  return copy;
}

void check_kind(const void* to, const void* from, cudaMemcpyKind kind) {
  const cudaMemcpyKind actual =
      is_device(from) ? (is_device(to) ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost)
                      : (is_device(to) ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost);
  if (kind != cudaMemcpyDefault && kind != actual) {
    throw Failure{cudaErrorInvalidMemcpyDirection,
                  fmt::format("cudaMemcpyAsync: the kind does not fit a copy to {} from {}",
                              describe(to), describe(from))};
  }
}

Operation copy_operation(const char* name, char* to, const char* from, size_t bytes) {
  Operation copy = work(name, [=] { std::memcpy(to, from, bytes); });
  if (is_emulated(from)) copy.reads = {{from, bytes}};
  if (is_emulated(to)) copy.writes = {{to, bytes}};
  return copy;
}

}  // namespace

void enqueue_copy(cudaStream_t handle, void* target, const void* source, size_t bytes,
                  cudaMemcpyKind kind) {
  EmuStream& stream = checked(handle);
  if (bytes == 0) return;
  auto* const to = static_cast<char*>(target);
  const auto* from = static_cast<const char*>(source);
  check_kind(to, from, kind);
  if (stream.capture && (!is_emulated(from) || !is_emulated(to))) {
    throw Failure{cudaErrorStreamCaptureUnsupported,
                  "a copy of pageable host memory is captured: make the memory page-locked"};
  }
  if (is_device(from) && is_device(to)) {
    enqueue(handle, copy_operation("cudaMemcpyAsync on the device", to, from, bytes));
  } else if (is_pinned(from)) {
    Operation copy = copy_operation("cudaMemcpyAsync to the device", to, from, bytes);
    copy.enqueued = [=, &stream, run = copy.run](Operation& queued) {
      const auto watched = watch(stream, queued.sequence, const_cast<char*>(from), bytes, false);
      queued.run = [=] {
        compare(*watched);
        run();
        watched->ran = true;
      };
    };
    enqueue(handle, std::move(copy));
  } else if (is_device(from) && is_pinned(to)) {
    Operation copy = copy_operation("cudaMemcpyAsync to the host", to, from, bytes);
    copy.enqueued = [=, &stream](Operation& queued) {
      const auto watched = watch(stream, queued.sequence, to, bytes, true);
      queued.run = [=] {
        watched->arrived.assign(from, from + bytes);
        watched->ran = true;
      };
    };
    enqueue(handle, std::move(copy));
  } else if (is_device(from)) {
    // To pageable memory: the call returns when the copy is complete.
    enqueue(handle, copy_operation("cudaMemcpyAsync to pageable memory", to, from, bytes));
    synchronize(stream);
  } else {
    // From pageable memory: staged at the call.
    const auto staged = std::make_shared<std::vector<char>>(from, from + bytes);
    Operation copy = work("cudaMemcpyAsync from pageable memory",
                          [=] { std::memcpy(to, staged->data(), bytes); });
    copy.writes = {{to, bytes}};
    enqueue(handle, std::move(copy));
  }
}

void settle_pinned_copies() {
  std::vector<std::shared_ptr<PinnedCopy>> known;
  std::erase_if(copies().all, [&](const auto& copy) {
    if (!copy->ran || !covers(host_clock(), copy->slot, copy->sequence)) return false;
    known.push_back(copy);
    return true;
  });
  for (const auto& copy : known) {
    if (copy->to_host) {
      show(*copy);
    } else {
      compare(*copy);
    }
  }
}

void before_pinned_access(const Range& range) {
  if (!is_pinned(range.address)) return;
  for (const auto& copy : copies().all) {
    if (copy->to_host && copy->ran &&
        overlap(static_cast<const char*>(range.address), range.bytes, copy->host, copy->bytes)) {
      show(*copy);
    }
  }
}

void forget_pinned_copies() {
  copies().all.clear();
}

}  // namespace emu
