#include "parallel/watch/process.h"

#include <condition_variable>
#include <csignal>
#include <memory>
#include <mutex>
#include <optional>
#include <unistd.h>

#include "parallel/watch/patience.h"
#include "runtime/error.h"

namespace supra {

std::thread start_quiet_thread(const std::function<void()>& work) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(work);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

std::string run_bounded(std::chrono::milliseconds limit, std::function<void()> work) {
  struct Outcome {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<std::string> error;
  };
  const auto outcome = std::make_shared<Outcome>();
  std::thread([outcome, work = std::move(work)] {
    std::string error;
    try {
      work();
    } catch (const std::exception& e) {
      error = e.what();
    }
    const std::lock_guard lock(outcome->mutex);
    outcome->error = error;
    outcome->changed.notify_one();
  }).detach();
  std::unique_lock lock(outcome->mutex);
  outcome->changed.wait_for(lock, limit, [&] { return outcome->error.has_value(); });
  return outcome->error.value_or(fmt::format("not done within {} s", limit.count() / 1000));
}

void print_bounded(const std::string& text) {
  run_bounded(patience::print, [text] {
    for (size_t done = 0; done < text.size();) {
      const ssize_t n = ::write(STDERR_FILENO, text.data() + done, text.size() - done);
      if (n <= 0) return;  // there is nobody to tell
      done += static_cast<size_t>(n);
    }
  });
}

void end_process() {
  ::_exit(static_cast<int>(ExitCode::watchdog));
}

}  // namespace supra
