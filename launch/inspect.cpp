#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "launch/commands.h"
#include "launch/report/run_log.h"
#include "launch/report/table.h"
#include "model/model_file.h"
#include "parallel/checkpoint/index.h"
#include "runtime/files/checksum.h"
#include "runtime/files/hdf5.h"
#include "runtime/printable.h"

namespace supra {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct InspectOptions {
  std::string path;
  bool stats = false, json = false;
};

/// Of the elements that are not NaN, in one pass.
struct Statistics {
  int64_t count = 0, nan = 0;
  double mean = 0, squares = 0;  ///< sum of squared distances from the mean
  double min = std::numeric_limits<double>::infinity(), max = -min;

  double deviation() const { return std::sqrt(squares / static_cast<double>(count)); }

  /// Joins the statistics of two parts (Chan, Golub, LeVeque 1983).
  void add(const Statistics& part) {
    nan += part.nan;
    if (part.count == 0) return;
    const auto n = static_cast<double>(count), m = static_cast<double>(part.count);
    const double distance = part.mean - mean;
    mean += distance * m / (n + m);
    squares += part.squares + distance * distance * n * m / (n + m);
    count += part.count;
    min = std::min(min, part.min);
    max = std::max(max, part.max);
  }
};

template <class T>
Statistics statistics_of(const std::vector<T>& values) {
  Statistics s;
  double sum = 0;
  for (const T value : values) {
    const auto x = static_cast<double>(value);
    if (std::isnan(x)) {
      ++s.nan;
      continue;
    }
    ++s.count;
    sum += x;
    s.min = std::min(s.min, x);
    s.max = std::max(s.max, x);
  }
  if (s.count == 0) return s;
  s.mean = sum / static_cast<double>(s.count);
  for (const T value : values) {
    const double distance = static_cast<double>(value) - s.mean;
    if (!std::isnan(distance)) s.squares += distance * distance;
  }
  return s;
}

template <class T>
Statistics read_statistics(const hdf5::File& file, const hdf5::DatasetInfo& info, hdf5::Type type) {
  constexpr int64_t part = int64_t{1} << 20;
  Statistics all;
  std::vector<T> values;
  for (int64_t begin = 0; begin < info.size(); begin += part) {
    values.resize(static_cast<size_t>(std::min(part, info.size() - begin)));
    file.read(info.name, type, begin, static_cast<int64_t>(values.size()), values.data());
    all.add(statistics_of(values));
  }
  return all;
}

Statistics read_statistics(const hdf5::File& file, const hdf5::DatasetInfo& info) {
  const bool narrow = info.type == hdf5::Type::fp32 || info.type == hdf5::Type::bf16;
  return narrow ? read_statistics<float>(file, info, hdf5::Type::fp32)
                : read_statistics<double>(file, info, hdf5::Type::fp64);
}

/// What is shown of one dataset.
struct Row {
  hdf5::DatasetInfo info;
  std::optional<Statistics> stats;

  size_t bytes() const { return static_cast<size_t>(info.size()) * size_of(info.type); }
};

/// JSON's form of an attribute; null for what is neither text nor number.
struct ToJson {
  OrderedJson operator()(std::monostate) const { return nullptr; }
  template <class T>
  OrderedJson operator()(const T& value) const {
    return value;
  }
};

/// A shard file of a checkpoint: what its index says of it, and what is there.
struct ShardRow {
  std::string name;
  StoredShard expected;
  std::optional<uint64_t> bytes;  ///< none: it is not there

  std::string state() const {
    if (!bytes) return "missing";
    return *bytes == expected.bytes ? "" : fmt::format("has {}", format_bytes(*bytes));
  }
};

struct Contents {
  std::string path;
  OrderedJson attributes = OrderedJson::object();
  std::vector<ShardRow> shards;  ///< of a checkpoint
  int64_t checksums = 0;         ///< of tensors' pieces in them
  std::vector<Row> rows;
  int64_t parameters = 0;  ///< elements under /model

  size_t bytes() const {
    size_t sum = 0;
    for (const Row& row : rows) sum += row.bytes();
    return sum;
  }
};

void add_shards(const std::string& path, Contents& contents) {
  const CheckpointLayout layout = read_index(path).layout;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  for (size_t i = 0; i < layout.shards.size(); ++i) {
    ShardRow row{shard_file(static_cast<int64_t>(i)), layout.shards[i], {}};
    std::error_code missing;
    const uint64_t bytes = std::filesystem::file_size(folder / row.name, missing);
    if (!missing) row.bytes = bytes;
    contents.shards.push_back(std::move(row));
  }
  for (const StoredTensor& tensor : layout.tensors) {
    for (const auto& pieces : tensor.checksums) {
      contents.checksums += static_cast<int64_t>(pieces.size());
    }
  }
}

Contents read_contents(const InspectOptions& options) {
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(options.path, ignored);
  const hdf5::File file = hdf5::File::open(is_folder ? options.path + "/index.h5" : options.path);
  if (options.stats) check_shards(file);
  Contents contents;
  contents.path = file.path();
  for (const std::string& name : file.attributes("/")) {
    if (name == "layout") {  // shown as what it says of the shards
      add_shards(contents.path, contents);
    } else {
      contents.attributes[name] = std::visit(ToJson(), file.get("/", name));
    }
  }
  for (hdf5::DatasetInfo& info : file.list()) {
    if (info.name.starts_with("/model/")) contents.parameters += info.size();
    Row row{std::move(info), {}};
    if (options.stats) row.stats = read_statistics(file, row.info);
    contents.rows.push_back(std::move(row));
  }
  return contents;
}

OrderedJson to_json(const Contents& contents) {
  OrderedJson json{{"file", contents.path}, {"attributes", contents.attributes}};
  if (!contents.shards.empty()) {
    json["shards"] = OrderedJson::array();
    for (const ShardRow& row : contents.shards) {
      json["shards"].push_back({{"file", row.name},
                                {"bytes", row.expected.bytes},
                                {"checksum", checksum_text(row.expected.checksum)},
                                {"found_bytes", row.bytes ? OrderedJson(*row.bytes) : nullptr}});
    }
    json["checksums"] = contents.checksums;
  }
  json["datasets"] = OrderedJson::array();
  for (const Row& row : contents.rows) {
    OrderedJson dataset{{"name", row.info.name},
                        {"shape", row.info.shape},
                        {"dtype", name_of(row.info.type)},
                        {"bytes", row.bytes()},
                        {"virtual", row.info.stored_bytes == 0 && row.bytes() > 0}};
    if (row.stats) {
      const Statistics& s = *row.stats;
      dataset["nan"] = s.nan;
      if (s.count > 0) {
        dataset.update({{"mean", s.mean}, {"std", s.deviation()}, {"min", s.min}, {"max", s.max}});
      }
    }
    json["datasets"].push_back(std::move(dataset));
  }
  json["parameters"] = contents.parameters;
  json["bytes"] = contents.bytes();
  return json;
}

/// Prints one attribute, a text of several lines indented below its name.
void print_attribute(const std::string& name, const OrderedJson& value) {
  const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  if (text.find('\n') == std::string::npos) {
    fmt::print("{:<16} {}\n", printable(name), printable(text));
    return;
  }
  fmt::print("{}\n", printable(name));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) fmt::print("  {}\n", printable(line));
}

Cells cells_of(const Row& row, bool stats) {
  Cells cells{printable(row.info.name), fmt::format("[{}]", fmt::join(row.info.shape, ", ")),
              std::string(name_of(row.info.type)), format_bytes(row.bytes())};
  if (!stats) return cells;
  const Statistics& s = *row.stats;
  for (const double value : {s.mean, s.deviation(), s.min, s.max}) {
    cells.push_back(s.count > 0 ? fmt::format("{:.4g}", value) : "-");
  }
  cells.push_back(fmt::format("{}", s.nan));
  return cells;
}

void print_shards(const Contents& contents) {
  std::vector<Cells> table{{"shard", "size", "xxh3", ""}};
  for (const ShardRow& row : contents.shards) {
    table.push_back({row.name, format_bytes(row.expected.bytes),
                     checksum_text(row.expected.checksum), row.state()});
  }
  print_table(table);
  fmt::print("{} checksums of tensors in {} shards; `supra verify` compares them\n\n",
             contents.checksums, contents.shards.size());
}

void print(const Contents& contents, bool stats) {
  fmt::print("{}\n", contents.path);
  for (const auto& [name, value] : contents.attributes.items()) print_attribute(name, value);
  fmt::print("\n");
  if (!contents.shards.empty()) print_shards(contents);
  std::vector<Cells> table{{"dataset", "shape", "dtype", "size"}};
  if (stats) table[0].insert(table[0].end(), {"mean", "std", "min", "max", "NaN"});
  for (const Row& row : contents.rows) table.push_back(cells_of(row, stats));
  print_table(table);
  fmt::print("\n{} datasets, {}", contents.rows.size(), format_bytes(contents.bytes()));
  if (contents.parameters > 0) fmt::print(", {} parameters", contents.parameters);
  fmt::print("\n");
}

ExitCode run_inspect(const InspectOptions& options) {
  const Contents contents = read_contents(options);
  if (options.json) {
    // Names and texts of a file need not be UTF-8, which JSON is.
    constexpr auto replace = OrderedJson::error_handler_t::replace;
    fmt::print("{}\n", to_json(contents).dump(-1, ' ', false, replace));
  } else {
    print(contents, options.stats);
  }
  return ExitCode::done;
}

}  // namespace

void add_inspect_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      app.add_subcommand("inspect", "Show what is in a model file, a checkpoint or a token file.");
  command->add_option("FILE.h5", options->path, "An HDF5 file, or the folder of a checkpoint")
      ->required();
  command->add_flag("--stats", options->stats,
                    "Read every dataset for its mean, standard deviation, extremes and NaNs");
  command->add_flag("--json", options->json, "Print one JSON object");
  command->callback([options, &action] { action = [options] { return run_inspect(*options); }; });
}

}  // namespace supra
