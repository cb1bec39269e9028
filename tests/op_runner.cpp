// op_runner OP IN.h5 OUT.h5: runs one op on the inputs of a file, so that any other program can
// check our kernels. Inputs are float32 datasets (targets: int64) and root attributes; they are
// rounded to the dtype first. Outputs are float32 datasets. Gradients are computed when IN.h5 has
// `dy`, or the op ends in a loss.

#include <cstdio>
#include <filesystem>
#include <thread>

#include <CLI/CLI.hpp>
#include <fmt/ranges.h>

#include "tests/ops/input.h"
#include "tests/ops/op.h"
#include "tests/ops/run.h"

namespace supra::test {
namespace {

struct Arguments {
  std::string op, input, output, device = "cpu", dtype = "fp32";
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  bool recurrent = false;
};

std::vector<std::string> offered_ops() {
  std::vector<std::string> names;
  for (const OpFamily& family : op_families()) {
    if (family.from_input) names.push_back(family.name);
  }
  return names;
}

/// The call that the file describes, without the gradients that it gives nothing to start from.
Op describe(const Arguments& arguments, const OpInput& input) {
  for (const OpFamily& family : op_families()) {
    if (!family.from_input || family.name != arguments.op) continue;
    Op op = family.from_input(input);
    if (op.objective.empty() && !input.has("dy")) return op.forward_only();
    std::erase_if(op.tensors, [&](const TensorSpec& t) {
      return t.role == Role::cotangent && !input.has(t.name);
    });
    return op;
  }
  fail_input("there is no op '{}'; choose one of {}", arguments.op, fmt::join(offered_ops(), ", "));
}

reference::Array<double> read_numbers(const hdf5::File& file, const TensorSpec& spec,
                                      DType activation) {
  reference::Array<double> array(spec.shape);
  file.read("/" + spec.name, hdf5::Type::fp64, 0, array.numel(), array.values.data());
  const DType dtype = dtype_of(spec.element, activation);
  for (double& x : array.values) x = round_to(dtype, x);
  return array;
}

reference::Array<double> read_indices(const hdf5::File& file, const TensorSpec& spec) {
  std::vector<int64_t> indices(static_cast<size_t>(spec.shape.numel()));
  file.read("/" + spec.name, hdf5::Type::int64, 0, spec.shape.numel(), indices.data());
  reference::Array<double> array(spec.shape);
  for (size_t i = 0; i < indices.size(); ++i) {
    if (indices[i] < -1 || indices[i] >= spec.below) {
      fail_input("{}: element {} of dataset '{}' is {}, it must be in [0, {}), or -1 (ignored)",
                 file.path(), i, spec.name, indices[i], spec.below);
    }
    array.values[i] = static_cast<double>(indices[i]);
  }
  return array;
}

Values<double> read_inputs(const Op& op, const hdf5::File& file, const OpInput& input,
                           DType activation) {
  Values<double> values = draw_inputs(op, activation, 0);
  for (const TensorSpec& t : op.tensors) {
    if (t.added) values[t.name] = reference::Array<double>(t.shape);
    if (!t.draw || t.computed) continue;
    const std::string expected = t.shape.to_string();
    if (!input.has(t.name)) {
      fail_input("{} has no dataset '{}'; {} needs it with shape {}", file.path(), t.name, op.name,
                 expected);
    }
    const std::vector<int64_t> shape = file.info("/" + t.name).shape;
    if (!std::ranges::equal(shape, t.shape.dims())) {
      fail_input("{}: dataset '{}' has shape [{}], beside the other inputs it must be {}",
                 file.path(), t.name, fmt::join(shape, ", "), expected);
    }
    values[t.name] =
        t.element == Element::int32 ? read_indices(file, t) : read_numbers(file, t, activation);
  }
  return values;
}

void write_results(const Values<double>& results, const Op& op, const std::string& path) {
  hdf5::File file = hdf5::File::create(path);
  for (const auto& [name, array] : results) {
    if (op.tensor(name).for_backward) continue;
    const auto dims = op.tensor(name).shape.dims();
    file.write_all("/" + name, hdf5::Type::fp32, {dims.begin(), dims.end()},
                   std::vector<float>(array.values.begin(), array.values.end()).data());
  }
  file.flush();
}

void run_op(const Arguments& arguments) {
  if (arguments.recurrent && arguments.op != "linear_attention") {
    fail_input("--recurrent is for linear_attention; {} has one form only", arguments.op);
  }
  std::error_code not_there_yet;
  if (std::filesystem::equivalent(arguments.input, arguments.output, not_there_yet)) {
    fail_input("{} would be overwritten by its own results; name another output", arguments.input);
  }
  const hdf5::File file = hdf5::File::open(arguments.input);
  const OpInput input(file, arguments.recurrent);
  const Op op = describe(arguments, input);
  const DType activation = arguments.dtype == "bf16" ? DType::bf16 : DType::fp32;
  const Values<double> inputs = read_inputs(op, file, input, activation);
  const std::unique_ptr<Device> device = make_device(arguments.device, arguments.threads);
  write_results(run(op, *device, activation, inputs), op, arguments.output);
}

int run_command_line(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Runs one op on the inputs of an HDF5 file and writes its outputs and gradients.");
  app.add_option("op", arguments.op, fmt::format("one of {}", fmt::join(offered_ops(), ", ")))
      ->required();
  app.add_option("input", arguments.input, "HDF5 file: float32 datasets, root attributes")
      ->required();
  app.add_option("output", arguments.output, "HDF5 file to write")->required();
  app.add_option("--device", arguments.device, "where to run it")->capture_default_str();
  app.add_option("--dtype", arguments.dtype, "activations and weights; inputs are rounded to it")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads, "threads of the device")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--recurrent", arguments.recurrent,
               "linear_attention: y and state_out token by token");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::bad_input);
  }
  run_op(arguments);
  return 0;
}

}  // namespace
}  // namespace supra::test

int main(int argc, char** argv) {
  try {
    return supra::test::run_command_line(argc, argv);
  } catch (const supra::Error& error) {
    std::fprintf(stderr, "op_runner: %s\n", error.report().c_str());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "op_runner: %s\n", error.what());
    return static_cast<int>(supra::ExitCode::internal);
  }
}
