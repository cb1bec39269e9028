#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "launch/commands.h"
#include "launch/report/table.h"
#include "model/model_file.h"

namespace supra {
namespace {

using OrderedJson = nlohmann::ordered_json;
using Elements = std::vector<float>;

struct DiffOptions {
  std::string a, b;
  bool model_only = false, all = false, json = false;
};

/// Of one tensor that both have in one shape. Elements are compared as fp32, which holds every bf16
/// exactly; those that are NaN on either side count as differing unless their bits agree, and stay
/// out of the differences below.
struct TensorDifference {
  int64_t count = 0;
  int64_t differing = 0;  ///< elements whose bits differ
  int64_t nan_a = 0, nan_b = 0;
  double largest = 0;    ///< max |a - b|
  double largest_a = 0;  ///< max |a|
  double squares = 0;    ///< sum of (a - b)^2
  double squares_a = 0;  ///< sum of a^2

  bool equal() const { return differing == 0; }
  /// max |a - b| / max |a|
  double relative() const { return ratio(largest, largest_a); }
  /// The root mean square of a - b beside that of a.
  double relative_rms() const { return std::sqrt(ratio(squares, squares_a)); }

  void add(const Elements& a, const Elements& b) {
    count += static_cast<int64_t>(a.size());
    for (size_t i = 0; i < a.size(); ++i) {
      const double x = a[i], y = b[i];
      differing += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]);
      nan_a += std::isnan(x);
      nan_b += std::isnan(y);
      if (std::isnan(x) || std::isnan(y)) continue;
      const double distance = x == y ? 0 : std::abs(x - y);  // infinities are equal to themselves
      largest = std::max(largest, distance);
      largest_a = std::max(largest_a, std::abs(x));
      squares += distance * distance;
      squares_a += x * x;
    }
  }

 private:
  static double ratio(double part, double whole) { return part == 0 ? 0 : part / whole; }
};

/// A name that at least one of the two has.
struct TensorRow {
  std::string name;
  std::string a = {}, b = {};  ///< type and shape: "fp32 [64, 64]"; empty: not there
  std::optional<TensorDifference> difference =
      {};  ///< none where shapes differ or one is not there

  bool equal() const { return difference && difference->equal(); }
};

/// A value of the state that differs: step, config, a line of the recipe.
struct StateRow {
  std::string name, a, b;
};

struct Diff {
  std::vector<TensorRow> tensors;
  std::vector<StateRow> state;

  bool equal() const {
    return std::all_of(tensors.begin(), tensors.end(), [](const auto& t) { return t.equal(); });
  }
};

TensorDifference compare(const hdf5::File& a, const hdf5::File& b, const hdf5::DatasetInfo& info) {
  constexpr int64_t part = int64_t{1} << 20;
  TensorDifference difference;
  Elements from_a, from_b;
  for (int64_t begin = 0; begin < info.size(); begin += part) {
    const int64_t n = std::min(part, info.size() - begin);
    from_a.resize(static_cast<size_t>(n));
    from_b.resize(static_cast<size_t>(n));
    a.read(info.name, hdf5::Type::fp32, begin, n, from_a.data());
    b.read(info.name, hdf5::Type::fp32, begin, n, from_b.data());
    difference.add(from_a, from_b);
  }
  return difference;
}

std::string describe(const hdf5::DatasetInfo& info) {
  return fmt::format("{} [{}]", name_of(info.type), fmt::join(info.shape, ", "));
}

using Datasets = std::map<std::string, hdf5::DatasetInfo>;

Datasets tensors_of(const hdf5::File& file, bool model_only) {
  Datasets datasets;
  for (const char* group : {"/model", "/optimizer"}) {
    if (model_only && group != std::string_view("/model")) continue;
    for (hdf5::DatasetInfo& info : file.list(group)) {
      std::string name = info.name;
      datasets.emplace(std::move(name), std::move(info));
    }
  }
  return datasets;
}

std::vector<TensorRow> compare_tensors(const hdf5::File& a, const hdf5::File& b,
                                       const DiffOptions& options) {
  const Datasets in_a = tensors_of(a, options.model_only), in_b = tensors_of(b, options.model_only);
  uint64_t total = 0, done = 0;
  std::set<std::string> names;
  for (const auto& [name, info] : in_a) {
    names.insert(name);
    total += static_cast<uint64_t>(info.size());
  }
  for (const auto& [name, info] : in_b) names.insert(name);

  Percentage progress("comparing");
  std::vector<TensorRow> rows;
  for (const std::string& name : names) {
    const auto left = in_a.find(name), right = in_b.find(name);
    TensorRow row{.name = name};
    if (left != in_a.end()) row.a = describe(left->second);
    if (right != in_b.end()) row.b = describe(right->second);
    if (!row.a.empty() && !row.b.empty() && left->second.shape == right->second.shape) {
      row.difference = compare(a, b, left->second);
    }
    if (left != in_a.end())
      progress.show(done += static_cast<uint64_t>(left->second.size()), total);
    rows.push_back(std::move(row));
  }
  return rows;
}

/// The values of a recipe as supra writes it, one a line, under "section.key".
std::map<std::string, std::string> values_of_recipe(const std::string& toml) {
  std::map<std::string, std::string> values;
  std::istringstream lines(toml);
  std::string section;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('[')) section = line.substr(1, line.find(']') - 1) + ".";
    const size_t equals = line.find(" = ");
    if (line.starts_with('#') || equals == std::string::npos) continue;
    values[section + line.substr(0, equals)] = line.substr(equals + 3);
  }
  return values;
}

struct ToText {
  std::string operator()(std::monostate) const { return ""; }
  std::string operator()(const std::string& text) const { return text; }
  template <class Number>
  std::string operator()(Number value) const {
    return fmt::format("{}", value);
  }
};

/// Everything but the tensors, by name: attributes, and what the longer ones among them consist of.
std::map<std::string, std::string> state_of(const hdf5::File& file) {
  // What tells how a file is laid out says nothing of what is in it.
  const std::set<std::string> of_the_file{"format", "checkpoint_id", "shards", "layout"};
  std::map<std::string, std::string> state;
  for (const std::string& name : file.attributes("/")) {
    if (of_the_file.contains(name)) continue;
    const std::string value = std::visit(ToText(), file.get("/", name));
    if (name == "recipe") {
      for (auto& [key, setting] : values_of_recipe(value)) state["recipe, " + key] = setting;
    } else if (name == "config") {
      const auto config = OrderedJson::parse(value, nullptr, false);
      for (const auto& [key, field] : config.items()) state["config, " + key] = field.dump();
    } else {
      state[name] = value;
    }
  }
  return state;
}

std::vector<StateRow> compare_state(const hdf5::File& a, const hdf5::File& b) {
  std::map<std::string, StateRow> rows;
  for (const auto& [name, value] : state_of(a)) rows[name] = {name, value, ""};
  for (const auto& [name, value] : state_of(b)) {
    StateRow& row = rows[name];
    row.name = name;
    row.b = value;
  }
  std::vector<StateRow> differing;
  for (auto& [name, row] : rows) {
    if (row.a != row.b) differing.push_back(std::move(row));
  }
  return differing;
}

/// JSON has no infinities.
OrderedJson number(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr);
}

OrderedJson to_json(const Diff& diff, const DiffOptions& options) {
  OrderedJson json{{"a", options.a}, {"b", options.b}, {"equal", diff.equal()}};
  json["tensors"] = OrderedJson::array();
  for (const TensorRow& row : diff.tensors) {
    OrderedJson entry{{"name", row.name}, {"equal", row.equal()}};
    entry["a"] = row.a.empty() ? OrderedJson(nullptr) : OrderedJson(row.a);
    entry["b"] = row.b.empty() ? OrderedJson(nullptr) : OrderedJson(row.b);
    if (row.difference) {
      const TensorDifference& d = *row.difference;
      entry.update({{"elements", d.count},
                    {"differing", d.differing},
                    {"max", number(d.largest)},
                    {"relative", number(d.relative())},
                    {"relative_rms", number(d.relative_rms())},
                    {"nan_a", d.nan_a},
                    {"nan_b", d.nan_b}});
    }
    json["tensors"].push_back(std::move(entry));
  }
  json["state"] = OrderedJson::array();
  for (const StateRow& row : diff.state) {
    json["state"].push_back({{"name", row.name}, {"a", row.a}, {"b", row.b}});
  }
  return json;
}

Cells cells_of(const TensorRow& row) {
  if (row.a.empty()) return {row.name, "only in B", "", "", "", "", ""};
  if (row.b.empty()) return {row.name, "only in A", "", "", "", "", ""};
  if (!row.difference) return {row.name, row.a + " | " + row.b, "", "", "", "", ""};
  const TensorDifference& d = *row.difference;
  return {row.name,
          d.equal() ? "equal" : fmt::format("{} of {}", d.differing, d.count),
          fmt::format("{:.3g}", d.largest),
          fmt::format("{:.3g}", d.relative()),
          fmt::format("{:.3g}", d.relative_rms()),
          fmt::format("{}", d.nan_a),
          fmt::format("{}", d.nan_b)};
}

void print(const Diff& diff, bool all) {
  for (const StateRow& row : diff.state) {
    const auto shown = [](const std::string& value) { return value.empty() ? "-" : value; };
    fmt::print("{}: {} | {}\n", row.name, shown(row.a), shown(row.b));
  }
  std::vector<Cells> table{
      {"tensor", "differing", "max", "relative", "relative rms", "NaN in A", "NaN in B"}};
  int64_t equal = 0;
  for (const TensorRow& row : diff.tensors) {
    equal += row.equal();
    if (all || !row.equal()) table.push_back(cells_of(row));
  }
  if (table.size() > 1) {
    if (!diff.state.empty()) fmt::print("\n");
    print_table(table);
    fmt::print("\n");
  }
  fmt::print("{} of {} tensors are equal\n", equal, diff.tensors.size());
}

ExitCode run_diff(const DiffOptions& options) {
  const ModelFile a(options.a), b(options.b);
  const Diff diff{compare_tensors(a.file(), b.file(), options), compare_state(a.file(), b.file())};
  if (options.json) {
    fmt::print("{}\n", to_json(diff, options).dump());
  } else {
    print(diff, options.all);
  }
  return diff.equal() ? ExitCode::done : ExitCode::differ;
}

}  // namespace

void add_diff_command(CLI::App& app, Action& action) {
  const auto options = std::make_shared<DiffOptions>();
  CLI::App* command = app.add_subcommand(
      "diff", "Compare the tensors and the state of two checkpoints or model files.");
  command->add_option("A", options->a, "Model file, checkpoint folder or index.h5")->required();
  command->add_option("B", options->b, "What to compare with it")->required();
  command->add_flag("--model-only", options->model_only, "Leave out the optimizer's moments");
  command->add_flag("--all", options->all, "Show tensors that are equal, too");
  command->add_flag("--json", options->json, "Print one JSON object");
  command->callback([options, &action] { action = [options] { return run_diff(*options); }; });
}

}  // namespace supra
