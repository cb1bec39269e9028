// Generation by length of context: time for a token, and memory. Linear attention should show
// neither to depend on it, softmax attention both to grow. A decoder for each length stands at it
// while the lengths take turns, a number of tokens each, so that what else the machine does falls
// on all of them.

#include <algorithm>
#include <chrono>
#include <fstream>
#include <limits>
#include <memory>
#include <unistd.h>

#include "launch/bench/bench.h"
#include "launch/bench/report.h"
#include "launch/bench/spread.h"
#include "launch/inference.h"
#include "launch/report/run_log.h"
#include "launch/report/table.h"
#include "launch/sampler.h"
#include "runtime/random.h"

namespace supra {
namespace {

constexpr int64_t read_at_once = 256;

struct GenerateBench {
  InferenceOptions inference;
  std::vector<int64_t> lengths{1024, 4096, 16384, 65536, 131072};
  int64_t tokens = 32;
  int64_t rounds = 3;
  int64_t fill_above = std::numeric_limits<int64_t>::max();
  std::string json;
};

/// Memory of this process that is in RAM.
size_t resident_bytes() {
  size_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

/// A sequence that is continued as `supra generate` does.
class Sequence {
 public:
  Sequence(DecoderInference& inference, int64_t length, int64_t more)
      : decoder_(inference.make_decoder(
            {.read_at_once = std::min(read_at_once, length), .context = length + more})),
        vocabulary_(inference.config().vocabulary),
        logits_(static_cast<size_t>(vocabulary_)) {}

  void read(int64_t length, Percentage& shown) {
    std::vector<int32_t> tokens;
    while (decoder_->position() < length) {
      const int64_t count = std::min(read_at_once, length - decoder_->position());
      tokens.resize(static_cast<size_t>(count));
      std::generate(tokens.begin(), tokens.end(), [this] { return arbitrary_token(); });
      decoder_->read(tokens.data(), count);
      shown.show(static_cast<uint64_t>(decoder_->position()), static_cast<uint64_t>(length));
    }
  }
  void pretend_to_read(int64_t length) { decoder_->pretend_to_read(length); }

  /// Seconds that one more token takes: to read the last one, and to draw the next.
  double generate() {
    const auto began = std::chrono::steady_clock::now();
    decoder_->read(&next_, 1);
    decoder_->next_logits(logits_.data());
    next_ = sample_(logits_, random_.uniform(drawn_++));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  }
  size_t state_bytes() const { return decoder_->state_bytes(); }

 private:
  int32_t arbitrary_token() {
    return static_cast<int32_t>(random_.bits(drawn_++) % static_cast<uint64_t>(vocabulary_));
  }

  std::unique_ptr<Decoder> decoder_;
  int64_t vocabulary_;
  std::vector<float> logits_;
  RandomStream random_{0, "bench generate"};
  uint64_t drawn_ = 0;
  Sampler sample_{1, 1};
  int32_t next_ = 0;
};

/// One length: what stands there, and what was measured.
struct Point {
  int64_t length;
  bool filled;
  std::unique_ptr<Sequence> sequence;
  size_t grown_bytes = 0;  ///< by which the process grew for this sequence
  std::vector<double> seconds = {};
};

ExitCode run(const GenerateBench& o) {
  BenchReport report("generate");
  DecoderInference inference(o.inference);
  report.introduce(inference.device());
  const int64_t more = 1 + o.tokens * o.rounds;
  // What every sequence needs is in place once one has been read and continued.
  Sequence first(inference, read_at_once, more);
  {
    Percentage silent("");
    first.read(read_at_once, silent);
    first.generate();
  }
  const size_t base = resident_bytes();
  std::vector<Point> points;
  for (const int64_t length : o.lengths) {
    const size_t before = resident_bytes();
    Point p{.length = length,
            .filled = length > o.fill_above,
            .sequence = std::make_unique<Sequence>(inference, length, more)};
    if (p.filled) {
      p.sequence->pretend_to_read(length);
    } else {
      Percentage shown(fmt::format("reading {} tokens", length));
      p.sequence->read(length, shown);
    }
    p.sequence->generate();
    p.grown_bytes = resident_bytes() - std::min(before, resident_bytes());
    points.push_back(std::move(p));
  }
  for (int64_t round = 0; round < o.rounds; ++round) {
    for (Point& p : points) {
      for (int64_t i = 0; i < o.tokens; ++i) p.seconds.push_back(p.sequence->generate());
    }
  }

  std::vector<Cells> table{{"context", "ms/token", "min", "max", "tokens/s", "state", "memory"}};
  report["model"] = o.inference.model;
  report["attention"] = name_of(inference.config().attention);
  report["dtype"] = o.inference.dtype;
  report["tokens"] = o.tokens;
  report["rounds"] = o.rounds;
  report["lengths"] = nlohmann::ordered_json::array();
  for (const Point& p : points) {
    const Spread seconds = spread_of(p.seconds);
    const size_t state = p.sequence->state_bytes(), memory = base + p.grown_bytes;
    report["lengths"].push_back({{"length", p.length},
                                 {"filled", p.filled},
                                 {"seconds_per_token", seconds},
                                 {"state_bytes", state},
                                 {"memory_bytes", memory},
                                 {"memory_growth_bytes", p.grown_bytes}});
    table.push_back(
        {fmt::format("{}{}", p.length, p.filled ? " *" : ""),
         fmt::format("{:.2f}", seconds.median * 1e3), fmt::format("{:.2f}", seconds.min * 1e3),
         fmt::format("{:.2f}", seconds.max * 1e3), fmt::format("{:.1f}", 1 / seconds.median),
         format_bytes(state), format_bytes(memory)});
  }
  print_table(table);
  if (std::any_of(points.begin(), points.end(), [](const Point& p) { return p.filled; })) {
    fmt::print("* filled with arbitrary values instead of read\n");
  }
  report.save(o.json);
  return ExitCode::done;
}

}  // namespace

void add_bench_generate_command(CLI::App& bench, Action& action) {
  const auto o = std::make_shared<GenerateBench>();
  CLI::App* command = bench.add_subcommand(
      "generate", "Time for a token of generation, and memory, by the tokens read before.");
  command->add_option("MODEL.h5", o->inference.model, "Model file, checkpoint folder or index.h5")
      ->required();
  command->add_option("--lengths", o->lengths, "Tokens read before, joined by commas")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--tokens", o->tokens, "Tokens generated at a length, before the next's turn")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--rounds", o->rounds, "Turns of each length")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--fill-above", o->fill_above,
                   "Beyond so many tokens, do not read them but fill state or cache with arbitrary "
                   "values, on which time and memory do not depend")
      ->check(CLI::NonNegativeNumber);
  add_json_option(*command, o->json);
  add_inference_options(*command, o->inference);
  command->callback([o, &action] { action = [o] { return run(*o); }; });
}

}  // namespace supra
