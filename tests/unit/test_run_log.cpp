#include <cmath>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <unistd.h>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/report/run_log.h"
#include "runtime/error.h"

using namespace supra;
using doctest::Contains;

namespace {

/// A run folder of its own, gone with the object.
class Folder {
 public:
  Folder() {
    std::string name = std::filesystem::temp_directory_path() / "supra_run_log_XXXXXX";
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }

  std::vector<nlohmann::json> records() const {
    std::ifstream file(path_ + "/metrics.jsonl");
    std::vector<nlohmann::json> records;
    for (std::string line; std::getline(file, line);) {
      records.push_back(nlohmann::json::parse(line));
    }
    return records;
  }

 private:
  std::string path_;
};

StepMetrics metrics_of(int64_t step) {
  StepMetrics m;
  m.step = step;
  m.tokens = step * 2048;
  m.loss = 3.4121;
  m.z_loss = 0.012;
  m.grad_norm = 0.83;
  m.lr = 2.9e-5;
  m.tokens_per_second = 1234;
  m.seconds = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8};
  m.memory = {1, 2, 3, 4, 5, 6, 7};
  return m;
}

RunStart start_of(int64_t step, int ranks = 2) {
  RunStart run;
  run.step = step;
  run.steps = 1000;
  run.ranks = ranks;
  run.device = "cpu, 1 thread";
  run.parameters = 1000;
  run.trained_parameters = 10;
  run.memory = {1024, 0, 0, 0, 0, 0, 512};
  run.recipe_hash = "0123456789abcdef";
  return run;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// What a terminal shows after this output: each "back to the start and erase" carried out.
std::string screen_of(std::string output) {
  const std::string erase = "\r\x1b[K";
  for (size_t at; (at = output.find(erase)) != std::string::npos;) {
    const size_t line = output.rfind('\n', at);
    const size_t begin = line == std::string::npos ? 0 : line + 1;
    output.erase(begin, at + erase.size() - begin);
  }
  return output;
}

}  // namespace

TEST_CASE("run log: a step is one line of JSON with every documented key") {
  const Folder folder;
  std::ostringstream out;
  RunLog log(folder.path(), 0, {}, out);
  log.start(start_of(0));
  StepMetrics m = metrics_of(1);
  m.mfu = 0.5;
  m.mfu_peak_flops = 2e15;
  log.step(m);
  log.step(metrics_of(2));
  log.validation({2, 4096, 3.25});
  log.finish({300, 20});

  const std::vector<nlohmann::json> records = folder.records();
  REQUIRE(records.size() == 5);
  CHECK(records[0]["event"] == "start");
  CHECK(records[0]["ranks"] == 2);
  CHECK(records[0]["memory"]["parameters"] == 1024);
  CHECK(records[0]["memory"]["communication"] == 512);
  CHECK(records[0]["recipe_hash"] == "0123456789abcdef");
  CHECK(records[0]["commit"] == run_commit());
  const auto date = records[0]["date"].get<std::string>();
  CHECK_MESSAGE((date.size() == 20 && date[10] == 'T' && date[19] == 'Z'), date);
  CHECK(records[1] == nlohmann::json::parse(R"({
    "step": 1, "tokens": 2048, "loss": 3.4121, "z_loss": 0.012, "grad_norm": 0.83, "lr": 2.9e-05,
    "tokens_per_second": 1234.0, "tokens_per_second_per_rank": 617.0,
    "mfu": 0.5, "mfu_peak_flops": 2e15,
    "seconds": {"data": 0.1, "gather": 0.2, "forward": 0.3, "backward": 0.4, "reduce": 0.5,
                "optimizer": 0.6, "checkpoint": 0.7, "other": 0.8},
    "memory": {"parameters": 1, "gathered": 2, "gradients": 3, "optimizer": 4, "activations": 5,
               "workspace": 6, "communication": 7}})"));
  CHECK_FALSE(records[2].contains("mfu"));
  CHECK(records[3] ==
        nlohmann::json::parse(R"({"step": 2, "tokens": 4096, "validation_loss": 3.25})"));
  CHECK(records[4] ==
        nlohmann::json::parse(
            R"({"event": "finish", "step": 2, "peak_memory": 300, "workspace": 20})"));
}

TEST_CASE("run log: a loss is written so that it reads back to the same bits") {
  const Folder folder;
  std::ostringstream out;
  RunLog log(folder.path(), 0, {}, out);
  log.start(start_of(0));
  StepMetrics m = metrics_of(1);
  m.loss = std::nextafter(3.0, 4.0);
  log.step(m);
  CHECK(folder.records()[1]["loss"].get<double>() == m.loss);
}

TEST_CASE("run log: resuming drops the lines after the checkpoint and goes on below the rest") {
  const Folder folder;
  std::ostringstream out;
  {
    RunLog log(folder.path(), 0, {}, out);
    log.start(start_of(0));
    for (int64_t step = 1; step <= 5; ++step) log.step(metrics_of(step));
  }
  std::ofstream(folder.path() + "/metrics.jsonl", std::ios::app) << "{\"step\": 6, \"lo";
  {
    RunLog log(folder.path(), 3, {}, out);
    log.start(start_of(3));
    log.step(metrics_of(4));
  }
  std::vector<int64_t> steps;
  for (const nlohmann::json& record : folder.records()) steps.push_back(record["step"]);
  CHECK(steps == std::vector<int64_t>{0, 1, 2, 3, 3, 4});

  const RunLog fresh(folder.path(), 0, {}, out);
  CHECK(folder.records().empty());
}

TEST_CASE("run log: without a terminal each step is a plain line") {
  const Folder folder;
  std::ostringstream out;
  RunLog log(folder.path(), 0, {}, out);
  log.start(start_of(0));
  log.step(metrics_of(120));
  log.validation({120, 1, 3.25});
  log.say("done");
  const std::vector<std::string> lines = lines_of(out.str());
  REQUIRE(lines.size() == 5);
  CHECK(lines[0] == "2 ranks, cpu, 1 thread");
  CHECK(lines[1] == "1000 parameters, 10 trained; 1.50 KiB a rank, and 0 B to stage checkpoints");
  CHECK(lines[2] ==
        "step  120/1000  loss 3.4121  z 0.012  grad 0.83  lr 2.90e-05  1234 tok/s  617 tok/s/rank  "
        "eta 0:00:00");
  CHECK(lines[3] == "step  120/1000  validation loss 3.2500");
  CHECK(lines[4] == "done");
}

TEST_CASE("run log: on a terminal every line fits and the bar is redrawn below") {
  for (int columns : {40, 80, 200}) {
    CAPTURE(columns);
    const Folder folder;
    std::ostringstream out;
    std::optional<RunLog> log;
    log.emplace(folder.path(), 0, Terminal{true, columns, false}, out);
    log->start(start_of(0));
    log->step(metrics_of(1));
    log->step(metrics_of(2));
    const std::vector<std::string> lines = lines_of(screen_of(out.str()));
    REQUIRE(lines.size() == 5);
    CHECK(lines[2].starts_with("step    1/1000  loss 3.4121"));
    CHECK(lines[3].starts_with("step    2/1000  loss 3.4121"));
    CHECK(lines[4].starts_with("["));
    CHECK_MESSAGE(lines[4].find("]   0%  2/1000  0:00:0") != std::string::npos, lines[4]);
    for (size_t i = 2; i < lines.size(); ++i) CHECK(lines[i].size() < static_cast<size_t>(columns));
    CHECK((lines[2].find("tok/s/rank") != std::string::npos) == (columns == 200));
    log.reset();
    CHECK(screen_of(out.str()).ends_with("\n"));
  }
}

TEST_CASE("run log: colour appears only where the terminal has it") {
  auto output = [](Terminal terminal) {
    const Folder folder;
    std::ostringstream out;
    RunLog log(folder.path(), 0, terminal, out);
    log.start(start_of(0));
    log.step(metrics_of(500));
    return out.str();
  };
  CHECK(output({true, 80, true}).find("\x1b[32m") != std::string::npos);
  CHECK(output({true, 80, false}).find("\x1b[32m") == std::string::npos);
  CHECK(output({}).find('\x1b') == std::string::npos);
}

TEST_CASE(
    "run folder: it is made, takes the recipe, and refuses a second run that is no resumption") {
  const Folder parent;
  const std::string folder = parent.path() + "/a/b";
  prepare_run_folder(folder, "[model]\n", false);
  std::ifstream recipe(folder + "/recipe.toml");
  std::string line;
  CHECK((std::getline(recipe, line) && line == "[model]"));

  std::ostringstream out;
  {
    RunLog log(folder, 0, {}, out);
    log.start(start_of(0));
    CHECK_NOTHROW(prepare_run_folder(folder, "", false));
    log.step(metrics_of(1));
  }
  CHECK_THROWS_WITH_AS(prepare_run_folder(folder, "", false), Contains("holds a run already"),
                       Error);
  CHECK_NOTHROW(prepare_run_folder(folder, "", true));

  const std::string other = parent.path() + "/other";
  std::filesystem::create_directories(other + "/checkpoints");
  CHECK_NOTHROW(prepare_run_folder(other, "", false));
  std::filesystem::create_directory(other + "/checkpoints/step-00000001");
  CHECK_THROWS_WITH_AS(prepare_run_folder(other, "", false), Contains("holds a run already"),
                       Error);
}

TEST_CASE("run folder: one that cannot be made or written is bad input") {
  const Folder parent;
  const std::string file = parent.path() + "/file";
  std::ofstream(file) << "x";
  CHECK_THROWS_WITH_AS(prepare_run_folder(file + "/run", "", false),
                       Contains("cannot make run.folder"), Error);
  CHECK_THROWS_WITH_AS(prepare_run_folder("/proc/self", "", false), Contains("cannot write"),
                       Error);
}

TEST_CASE("memory report: bytes by class, of one rank and of all") {
  const std::string report = memory_report({1536, 0, 0, size_t{3} << 30, 0, 0, 0}, 4);
  CHECK(report ==
        "memory             of one rank          of 4 ranks\n"
        "parameters            1.50 KiB            6.00 KiB\n"
        "gathered                   0 B                 0 B\n"
        "gradients                  0 B                 0 B\n"
        "optimizer             3.00 GiB           12.00 GiB\n"
        "activations                0 B                 0 B\n"
        "workspace                  0 B                 0 B\n"
        "communication              0 B                 0 B\n"
        "total                 3.00 GiB           12.00 GiB\n");
}

TEST_CASE("durations read as hours, minutes and seconds, days in front") {
  CHECK(format_duration(0) == "0:00:00");
  CHECK(format_duration(753.4) == "0:12:33");
  CHECK(format_duration(86399.6) == "1d 00:00:00");
  CHECK(format_duration(2 * 86400 + 3 * 3600) == "2d 03:00:00");
}
