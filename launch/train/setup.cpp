#include "launch/train/setup.h"

#include <sys/resource.h>

#include "launch/report/run_log.h"

namespace supra {

std::unique_ptr<Device> make_training_device(const Recipe& recipe, const MpiSession& session) {
  if (recipe.train.device == DeviceKind::cuda) return make_cuda_device(session.rank_on_host());
  const int64_t threads = recipe.run.threads > 0 ? recipe.run.threads : session.threads();
  return make_cpu_device(static_cast<int>(threads));
}

void require_memory(const Recipe& recipe, const MpiSession& session, const Device& device,
                    const MemoryPlan& plan, size_t beside) {
  // A GPU is a rank's own; a host's memory is shared.
  const bool shared = recipe.train.device == DeviceKind::cpu;
  const size_t available =
      device.available_bytes() / (shared ? static_cast<size_t>(session.ranks_on_host()) : 1);
  if (available && plan.bytes + beside > available) {
    fail_input(
        "a rank needs {} of memory, and there is {} for each:\n{}"
        "use more ranks, a smaller train.micro_batch or checkpoint.staging, or "
        "train.recompute = \"block\"",
        format_bytes(plan.bytes + beside), format_bytes(available),
        memory_report(plan.table, session.size()));
  }
}

size_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

}  // namespace supra
