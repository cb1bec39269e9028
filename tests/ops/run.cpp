#include "tests/ops/run.h"

#include <cstdlib>
#include <cstring>

namespace supra::test {
namespace {

template <class T>
std::vector<std::byte> encode_as(const std::vector<double>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) {
    T element;
    if constexpr (std::is_same_v<T, bf16>) {
      element = bf16(static_cast<float>(values[i]));
    } else {
      element = static_cast<T>(values[i]);
    }
    std::memcpy(bytes.data() + i * sizeof(T), &element, sizeof(T));
  }
  return bytes;
}

std::vector<std::byte> encode(DType dtype, const std::vector<double>& values) {
  switch (dtype) {
    case DType::fp32:
      return encode_as<float>(values);
    case DType::bf16:
      return encode_as<bf16>(values);
    case DType::fp64:
      return encode_as<double>(values);
    case DType::int32:
      return encode_as<int32_t>(values);
  }
  return {};
}

template <class T>
void decode_as(const std::vector<std::byte>& bytes, std::vector<double>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    T element;
    std::memcpy(&element, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = static_cast<double>(element);
  }
}

reference::Array<double> download_array(Device& device, const Tensor& tensor) {
  const std::vector<std::byte> bytes = download_bytes(device, tensor);
  reference::Array<double> array(tensor.shape());
  switch (tensor.dtype()) {
    case DType::fp32:
      decode_as<float>(bytes, array.values);
      break;
    case DType::bf16:
      decode_as<bf16>(bytes, array.values);
      break;
    case DType::fp64:
      decode_as<double>(bytes, array.values);
      break;
    case DType::int32:
      decode_as<int32_t>(bytes, array.values);
      break;
  }
  return array;
}

}  // namespace

std::vector<std::byte> download_bytes(Device& device, const Tensor& t) {
  std::vector<std::byte> bytes(t.bytes());
  if (!bytes.empty()) device.copy_out(t, bytes.data());
  return bytes;
}

std::unique_ptr<Device> make_device(const std::string& name, int threads) {
  if (name == "cpu") return make_cpu_device(threads);
  if (name == "cuda") return make_cuda_device(0);
  fail_input("there is no device '{}'; choose cpu or cuda", name);
}

std::unique_ptr<Device> make_test_device(int threads) {
  const char* name = std::getenv("SUPRA_TEST_DEVICE");
  return make_device(name ? name : "cpu", threads);
}

OpMemory::OpMemory(const Op& op, Device& device, DType activation, const Values<double>& inputs,
                   bool aliased)
    : op_(op), device_(device), activation_(activation), inputs_(inputs) {
  for (const TensorSpec& spec : op.tensors) tensors_.set(spec.name, allocate(spec));
  if (!aliased) return;
  for (const auto& [output, input] : op.aliases) {
    const Tensor shared = tensors_[input];
    if (shared && tensors_[output] && shared.dtype() == tensors_[output].dtype()) {
      tensors_.set(output, shared);
    }
  }
}

Tensor OpMemory::allocate(const TensorSpec& spec) {
  const DType dtype = dtype_of(spec.element, activation_);
  const size_t bytes = static_cast<size_t>(spec.shape.numel()) * size_of(dtype);
  const Tensor tensor(buffers_.emplace_back(device_, bytes).address(), dtype, spec.shape);
  const auto given = inputs_.find(spec.name);
  if (given != inputs_.end()) {
    SUPRA_CHECK(given->second.shape == spec.shape, "{} {}: {} is given as {}", op_.name, spec.name,
                spec.shape.to_string(), given->second.shape.to_string());
    device_.copy_in(encode(dtype, given->second.values).data(), tensor);
  } else {
    const std::vector<std::byte> not_a_number(bytes, std::byte{0xff});
    device_.copy_in(not_a_number.data(), tensor);
  }
  return tensor;
}

Values<double> OpMemory::results() const {
  Values<double> results;
  for (const TensorSpec& spec : op_.tensors) {
    if (spec.role != Role::output && spec.role != Role::in_out && spec.role != Role::gradient) {
      continue;
    }
    reference::Array<double> array = download_array(device_, tensors_[spec.name]);
    if (spec.added) {
      const std::vector<double>& before = inputs_.at(spec.name).values;
      for (size_t i = 0; i < before.size(); ++i) array.values[i] -= before[i];
    }
    results[spec.name] = std::move(array);
  }
  return results;
}

Values<double> run(const Op& op, Device& device, DType activation, const Values<double>& inputs,
                   bool aliased) {
  const OpMemory memory(op, device, activation, inputs, aliased);
  op.forward(device, memory.tensors());
  if (op.backward) op.backward(device, memory.tensors());
  device.synchronize();
  return memory.results();
}

}  // namespace supra::test
