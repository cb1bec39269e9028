#include "launch/report/run_log.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <numeric>
#include <vector>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/report/json_lines.h"
#include "runtime/error.h"

namespace supra {

using Json = nlohmann::ordered_json;

namespace {

std::string metrics_path(const std::string& folder) {
  return folder + "/metrics.jsonl";
}

bool holds_run(const std::string& folder) {
  std::error_code missing;
  const std::filesystem::directory_iterator checkpoints(folder + "/checkpoints", missing);
  bool found = !missing && checkpoints != std::filesystem::directory_iterator();
  for_each_step_line(metrics_path(folder), [&](const std::string&, const Json& record) {
    found = found || record["step"].get<int64_t>() > 0;
  });
  return found;
}

Json memory_json(const MemoryTable& memory) {
  Json json = Json::object();
  for (int i = 0; i < memory_classes; ++i) {
    json[std::string(name_of(static_cast<MemoryClass>(i)))] = memory[static_cast<size_t>(i)];
  }
  return json;
}

size_t total_bytes(const MemoryTable& memory) {
  return std::accumulate(memory.begin(), memory.end(), size_t{0});
}

}  // namespace

RunLog::RunLog(const std::string& folder, int64_t resumed_at, Terminal terminal)
    : RunLog(folder, resumed_at, terminal, std::cout) {}

RunLog::RunLog(const std::string& folder, int64_t resumed_at, Terminal terminal, std::ostream& out)
    : path_(metrics_path(folder)), progress_(out, terminal) {
  if (resumed_at > 0) {
    drop_steps_after(path_, resumed_at);
  } else {
    replace_file(path_, "");
  }
  file_.open(path_, std::ios::binary | std::ios::app);
}

void RunLog::go_back(int64_t step) {
  file_.close();
  drop_steps_after(path_, step);
  file_.open(path_, std::ios::binary | std::ios::app);
  step_ = step;
  progress_.start(step, steps_);
}

void RunLog::write(const Json& record) {
  // A full disk must not end a run that may go on without a checkpoint.
  if (!append_line(file_, record.dump())) {
    progress_.line(fmt::format("cannot write {}: {}", path_, std::strerror(errno)));
  }
}

void RunLog::start(const RunStart& run) {
  step_ = run.step;
  steps_ = run.steps;
  ranks_ = run.ranks;
  write({{"event", "start"},
         {"step", run.step},
         {"steps", run.steps},
         {"ranks", run.ranks},
         {"device", run.device},
         {"parameters", run.parameters},
         {"trained_parameters", run.trained_parameters},
         {"memory", memory_json(run.memory)},
         {"checkpoint_staging", run.staging},
         {"recipe_hash", run.recipe_hash},
         {"date", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
         {"commit", run_commit()}});
  progress_.line(fmt::format("{} rank{}, {}", run.ranks, run.ranks == 1 ? "" : "s", run.device));
  progress_.line(
      fmt::format("{} parameters, {} trained; {} a rank, and {} to stage "
                  "checkpoints",
                  run.parameters, run.trained_parameters, format_bytes(total_bytes(run.memory)),
                  format_bytes(run.staging)));
  progress_.start(run.step, run.steps);
}

void RunLog::step(const StepMetrics& m) {
  Json seconds = Json::object();
  for (int i = 0; i < phases; ++i) {
    seconds[std::string(name_of(static_cast<Phase>(i)))] = m.seconds[static_cast<size_t>(i)];
  }
  Json record = {{"step", m.step},
                 {"tokens", m.tokens},
                 {"loss", m.loss},
                 {"z_loss", m.z_loss},
                 {"grad_norm", m.grad_norm},
                 {"lr", m.lr},
                 {"tokens_per_second", m.tokens_per_second},
                 {"tokens_per_second_per_rank", m.tokens_per_second / ranks_}};
  if (m.mfu_peak_flops > 0) {
    record["mfu"] = m.mfu;
    record["mfu_peak_flops"] = m.mfu_peak_flops;
  }
  record["seconds"] = seconds;
  record["memory"] = memory_json(m.memory);
  write(record);
  step_ = m.step;
  progress_.advance();
  progress_.line(readable(m));
}

void RunLog::validation(const ValidationMetrics& m) {
  write({{"step", m.step}, {"tokens", m.tokens}, {"validation_loss", m.loss}});
  progress_.line(fmt::format("step {:>{}}/{}  validation loss {:.4f}", m.step,
                             std::to_string(steps_).size(), steps_, m.loss));
  progress_.skip_time();
}

void RunLog::anomaly(const AnomalyRecord& a) {
  write({{"event", a.action},
         {"step", step_},
         {"what", a.what},
         {"first_sample", a.first_sample},
         {"samples", a.samples},
         {"skipped", a.skipped}});
  progress_.line(fmt::format("step {}: {}; {}: samples {} to {} are passed over ({} {} so far)",
                             step_ + 1, a.what, a.action, a.first_sample,
                             a.first_sample + a.samples - 1, a.skipped,
                             a.skipped == 1 ? "batch" : "batches"));
}

void RunLog::checkpoint(const CheckpointRecord& c) {
  Json record = {{"event", "checkpoint"}, {"step", c.step}, {"checkpoint_seconds", c.seconds}};
  if (!c.error.empty()) record["error"] = c.error;
  if (!c.warning.empty()) record["warning"] = c.warning;
  write(record);
  if (!c.warning.empty()) progress_.line(c.warning);
  progress_.line(c.error.empty() ? fmt::format("checkpoint {}", c.folder)
                                 : fmt::format("no checkpoint of step {}: {}", c.step, c.error));
}

void RunLog::finish(const RunEnd& end) {
  write({{"event", end.stopped ? "stop" : "finish"},
         {"step", step_},
         {"peak_memory", end.peak_memory},
         {"workspace", end.workspace}});
  progress_.line(fmt::format("{}; the largest rank took {} of memory, {} of it scratch",
                             end.stopped ? "stopped, to go on later" : "done",
                             format_bytes(end.peak_memory), format_bytes(end.workspace)));
}

std::string RunLog::readable(const StepMetrics& m) const {
  // The number says what goes first where the terminal is too narrow for all.
  std::vector<std::pair<int, std::string>> fields = {
      {0, fmt::format("step {:>{}}/{}", m.step, std::to_string(steps_).size(), steps_)},
      {0, fmt::format("loss {:.4f}", m.loss)},
      {3, fmt::format("z {:.3g}", m.z_loss)},
      {1, fmt::format("grad {:.3g}", m.grad_norm)},
      {2, fmt::format("lr {:.2e}", m.lr)},
      {1, fmt::format("{:.0f} tok/s", m.tokens_per_second)},
  };
  if (ranks_ > 1)
    fields.emplace_back(4, fmt::format("{:.0f} tok/s/rank", m.tokens_per_second / ranks_));
  if (m.mfu_peak_flops > 0) fields.emplace_back(2, fmt::format("mfu {:.1f}%", 100 * m.mfu));
  if (!progress_.terminal().interactive) {
    fields.emplace_back(0, "eta " + format_duration(progress_.seconds_left()));
  }

  auto width = [&] {
    size_t sum = 2 * (fields.size() - 1);
    for (const auto& [rank, text] : fields) sum += text.size();
    return sum;
  };
  while (progress_.terminal().interactive &&
         width() >= static_cast<size_t>(progress_.terminal().columns) && fields.size() > 2) {
    fields.erase(std::max_element(fields.begin(), fields.end(),
                                  [](const auto& a, const auto& b) { return a.first < b.first; }));
  }
  std::string line;
  for (const auto& [rank, text] : fields) line += (line.empty() ? "" : "  ") + text;
  return line;
}

void make_run_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    fail_input("cannot make run.folder {}: {}; choose another", folder, error.message());
  }
}

void prepare_run_folder(const std::string& folder, const std::string& recipe_toml, bool resume) {
  make_run_folder(folder);
  if (!resume && holds_run(folder)) {
    fail_input(
        "run.folder {} holds a run already; go on with it by run.resume = \"latest\", or choose "
        "another folder",
        folder);
  }
  replace_file(folder + "/recipe.toml", recipe_toml);
}

std::string format_bytes(size_t bytes) {
  constexpr std::array units = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < units.size(); ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, units[unit]);
}

std::string memory_report(const MemoryTable& memory, int ranks) {
  std::string text = fmt::format("{:<16}{:>14}{:>20}\n", "memory", "of one rank",
                                 fmt::format("of {} rank{}", ranks, ranks == 1 ? "" : "s"));
  auto row = [&](std::string_view name, size_t bytes) {
    text += fmt::format("{:<16}{:>14}{:>20}\n", name, format_bytes(bytes),
                        format_bytes(bytes * static_cast<size_t>(ranks)));
  };
  for (int i = 0; i < memory_classes; ++i) {
    row(name_of(static_cast<MemoryClass>(i)), memory[static_cast<size_t>(i)]);
  }
  row("total", total_bytes(memory));
  return text;
}

}  // namespace supra
