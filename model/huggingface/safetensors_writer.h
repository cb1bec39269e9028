#pragma once
// Writes a safetensors file from its first byte to its last: the header with every tensor's place,
// then the elements as they are given. safetensors.h reads it.

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "runtime/dtype.h"

namespace supra {

class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
  };

  /// A new file of tensors of one dtype, fp32 or bf16, which follow each other in this order.
  SafetensorsWriter(std::string path, DType dtype, const std::vector<Tensor>& tensors);

  /// The next elements, of the tensors one after the other.
  void append(const void* elements, int64_t count);
  /// Once every element is written: returns when the file is on disk.
  void close();

 private:
  void check_stream();

  std::string path_;
  DType dtype_;
  int64_t missing_ = 0;  ///< elements
  std::ofstream file_;
};

}  // namespace supra
