#include "parallel/watch/record_file.h"

#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace supra {
namespace {

using Json = nlohmann::ordered_json;

void append(const std::filesystem::path& path, std::ios::openmode mode, const std::string& text) {
  std::ofstream file(path, std::ios::binary | mode);
  file << text << std::flush;
  if (!file) fail_input("cannot write {}", path.string());
}

/// Seconds since 1970, or null before it comes.
Json moment(const FlightRecord& record, int64_t time) {
  if (time == 0) return nullptr;
  return record.unix_time - record.seconds_since(time);
}

}  // namespace

void write_record(const std::string& run_folder, int rank, int ranks, const std::string& host,
                  const FlightRecord& record) {
  const Json head = {{"format", "supra-watch 1"},
                     {"rank", rank},
                     {"ranks", ranks},
                     {"host", host},
                     {"time", record.unix_time},
                     {"activity", record.activity},
                     {"active_since", moment(record, record.active_since)},
                     {"communicators", record.communicators}};
  // A line for each collective, for people and their tools.
  std::string text = head.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.pop_back();
  text += ",\n\"collectives\":[";
  const char* separator = "\n";
  for (const Collective& c : record.collectives) {
    const Json line = {{"communicator", record.communicators[c.communicator]},
                       {"sequence", c.sequence},
                       {"operation", name_of(c.operation)},
                       {"what", c.what.data()},
                       {"bytes", c.bytes},
                       {"state", name_of(c.state)},
                       {"begun", moment(record, c.begun)},
                       {"awaited", moment(record, c.awaited)},
                       {"ended", moment(record, c.ended)}};
    text += separator + line.dump(-1, ' ', false, Json::error_handler_t::replace);
    separator = ",\n";
  }
  text += "\n]}\n";

  const std::filesystem::path folder = std::filesystem::path(run_folder) / "watch";
  std::filesystem::create_directories(folder);
  const std::filesystem::path path = folder / fmt::format("rank-{:04}.json", rank);
  const std::filesystem::path aside = path.string() + ".tmp";
  append(aside, std::ios::trunc, text);
  std::filesystem::rename(aside, path);
}

}  // namespace supra
