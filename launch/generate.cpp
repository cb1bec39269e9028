#include <algorithm>
#include <charconv>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>

#include "launch/inference.h"
#include "launch/sampler.h"
#include "runtime/random.h"

namespace supra {
namespace {

/// Prompt tokens: enough to fill the chunks of linear attention.
constexpr int64_t read_at_once = 256;

struct GenerateOptions {
  InferenceOptions inference;
  std::string prompt;
  int64_t count = 50;
  double temperature = 1;
  double top_p = 1;
  int64_t seed = 0;
  std::optional<int64_t> stop;
};

/// The prompt as given, or, for "-", what stands on standard input, one id a line or several.
std::string prompt_text(const std::string& given) {
  if (given != "-") return given;
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  while (text.ends_with('\n')) text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ',');
  return text;
}

std::vector<int32_t> parse_tokens(const std::string& text, int64_t vocabulary) {
  std::vector<int32_t> tokens;
  for (const char *p = text.data(), *end = p + text.size(); p != end;) {
    int32_t id = 0;
    const auto [next, error] = std::from_chars(p, end, id);
    if (error != std::errc() || (next != end && *next != ',') || next + 1 == end) {
      fail_input(
          "--prompt-tokens must be ids joined by commas, as in 1,2,3; after {} ids it has '{}'",
          tokens.size(),
          std::string_view(p, static_cast<size_t>(std::min<ptrdiff_t>(end - p, 40))));
    }
    if (id < 0 || id >= vocabulary) {
      fail_input("prompt token {} is outside the model's vocabulary of {}", id, vocabulary);
    }
    tokens.push_back(id);
    p = next == end ? end : next + 1;
  }
  if (tokens.empty()) fail_input("--prompt-tokens is empty; give at least one token id");
  return tokens;
}

ExitCode run_generate(const GenerateOptions& o) {
  DecoderInference inference(o.inference);
  const auto vocabulary = inference.config().vocabulary;
  const std::vector<int32_t> prompt = parse_tokens(prompt_text(o.prompt), vocabulary);
  const auto length = static_cast<int64_t>(prompt.size());
  const auto decoder = inference.make_decoder(
      {.read_at_once = std::min(read_at_once, length), .context = length + o.count - 1});
  for (int64_t at = 0; at < length; at += read_at_once) {
    decoder->read(prompt.data() + at, std::min(read_at_once, length - at));
  }
  const RandomStream random(static_cast<uint64_t>(o.seed), "generate");
  Sampler sample(o.temperature, o.top_p);
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  for (int64_t i = 0; i < o.count; ++i) {
    decoder->next_logits(logits.data());
    const int32_t token = sample(logits, random.uniform(static_cast<uint64_t>(i)));
    if (o.stop && token == *o.stop) break;
    fmt::print("{}\n", token);
    std::fflush(stdout);
    if (i + 1 < o.count) decoder->read(&token, 1);
  }
  return ExitCode::done;
}

}  // namespace

void add_generate_command(CLI::App& app, Action& action) {
  const auto o = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate",
      "Continue a prompt, a linear model in recurrent form: prints one token id a line, as they "
      "come.");
  command->add_option("MODEL.h5", o->inference.model, "Model file, checkpoint folder or index.h5")
      ->required();
  command
      ->add_option(
          "--prompt-tokens", o->prompt,
          "Token ids joined by commas; -: read them from standard input, where lines may join "
          "them too")
      ->required();
  command->add_option("-n,--count", o->count, "Tokens to generate")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--temperature", o->temperature, "0: always the likeliest token")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top-p", o->top_p, "Draw from the likeliest tokens that make up this much")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", o->seed, "The same seed draws the same tokens")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--stop-token", o->stop, "End before this token");
  add_inference_options(*command, o->inference);
  command->callback([o, &action] { action = [o] { return run_generate(*o); }; });
}

}  // namespace supra
