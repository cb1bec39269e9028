#pragma once
// What reads files that others wrote, as functions of a file's bytes. Each hands them to the reader
// that the program uses and then does what a user would: reads every tensor, the first and last
// windows, prints and parses again. The one right answer to a bad file is an Error of bad input
// that is printable. Everything else ends the process: another exception, a failed check, a
// sanitizer's complaint. libFuzzer runs the targets (run.sh), and unit_tests replay the corpus.

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

namespace supra::fuzz {

using Bytes = std::span<const uint8_t>;

void read_safetensors(Bytes bytes);
void read_hf_config(Bytes bytes);
void read_recipe(Bytes bytes);
void read_token_file(Bytes bytes);
void read_checkpoint(Bytes bytes);

struct Target {
  std::string_view name;  ///< also of its corpus, tests/fuzz/corpus/<name>
  void (*run)(Bytes);
};
inline constexpr Target targets[] = {{"safetensors", read_safetensors},
                                     {"hf_config", read_hf_config},
                                     {"recipe", read_recipe},
                                     {"token_file", read_token_file},
                                     {"checkpoint", read_checkpoint}};

/// Runs a reader, which may refuse its input as bad.
void may_refuse(const std::function<void()>& reader);

/// Ends the process with a message unless a property of the reader holds.
void require(bool holds, std::string_view property);

}  // namespace supra::fuzz
