#include "model/huggingface/safetensors_writer.h"

#include <cerrno>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/files/durable.h"

namespace supra {

SafetensorsWriter::SafetensorsWriter(std::string path, DType dtype,
                                     const std::vector<Tensor>& tensors)
    : path_(std::move(path)), dtype_(dtype), file_(path_, std::ios::binary | std::ios::trunc) {
  SUPRA_CHECK(dtype == DType::fp32 || dtype == DType::bf16, "weights are written as fp32 or bf16");
  check_stream();
  const auto element = static_cast<int64_t>(size_of(dtype));
  // Readers of PyTorch weights ask for the format.
  nlohmann::ordered_json header{{"__metadata__", {{"format", "pt"}}}};
  for (const Tensor& tensor : tensors) {
    const int64_t begin = missing_;
    missing_ +=
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
    header[tensor.name] = {{"dtype", dtype == DType::bf16 ? "BF16" : "F32"},
                           {"shape", tensor.shape},
                           {"data_offsets", {begin * element, missing_ * element}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the elements are aligned
  char size[8];
  for (size_t i = 0; i < 8; ++i) size[i] = static_cast<char>(text.size() >> 8 * i);
  file_.write(size, sizeof size);
  file_.write(text.data(), static_cast<std::streamsize>(text.size()));
  check_stream();
}

void SafetensorsWriter::append(const void* elements, int64_t count) {
  SUPRA_CHECK(count <= missing_, "{} elements for {}, which lacks {}", count, path_, missing_);
  missing_ -= count;
  file_.write(static_cast<const char*>(elements),
              static_cast<std::streamsize>(static_cast<size_t>(count) * size_of(dtype_)));
  check_stream();
}

void SafetensorsWriter::close() {
  SUPRA_CHECK(missing_ == 0, "{} lacks {} elements", path_, missing_);
  file_.close();
  check_stream();
  sync_to_disk(path_);
}

void SafetensorsWriter::check_stream() {
  if (!file_) fail_input("cannot write {}: {}", path_, std::strerror(errno));
}

}  // namespace supra
