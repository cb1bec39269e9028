#pragma once
// Threads, last words and the end of a process in which anything may be stuck.

#include <chrono>
#include <functional>
#include <string>
#include <thread>

namespace supra {

/// A thread that takes no signals: those are for the threads that the program knows of.
std::thread start_quiet_thread(const std::function<void()>& work);

/// Runs `work` on a thread of its own, and goes on without it when it is not done in time. Returns
/// what it threw, or that it took too long; empty when it went well. For the end of a process:
/// `work` owns all it uses.
std::string run_bounded(std::chrono::milliseconds limit, std::function<void()> work);

/// Prints a text on standard error in one piece, within patience::print.
void print_bounded(const std::string& text);

/// Ends this process now, as the watchdog's.
[[noreturn]] void end_process();

}  // namespace supra
