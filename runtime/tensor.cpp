#include "runtime/tensor.h"

#include <algorithm>

#include <fmt/ranges.h>

namespace supra {

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  SUPRA_CHECK(dims.size() <= max_rank, "a shape has at most {} dimensions, got {}", max_rank,
              dims.size());
  for (size_t i = 0; i < dims.size(); ++i) {
    SUPRA_CHECK(dims[i] >= 0, "dimension {} of a shape is negative: {}", i, dims[i]);
    dims_[i] = dims[i];
  }
}

int64_t Shape::numel() const {
  int64_t n = 1;
  for (int64_t d : dims()) n *= d;
  return n;
}

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(dims(), ", "));
}

Tensor Tensor::view(Shape shape) const {
  if (!address_) return {};
  SUPRA_CHECK(shape.numel() == numel(), "a tensor {} cannot be viewed as {}", shape_.to_string(),
              shape.to_string());
  return {address_, dtype_, shape};
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  if (!address_) return {};
  SUPRA_CHECK(shape_.rank() > 0 && 0 <= begin && begin <= end && end <= shape_[0],
              "rows [{}, {}) are outside a tensor {}", begin, end, shape_.to_string());
  std::array<int64_t, Shape::max_rank> dims{};
  std::copy(shape_.dims().begin(), shape_.dims().end(), dims.begin());
  const int64_t row = shape_[0] ? numel() / shape_[0] : 0;
  dims[0] = end - begin;
  char* first = static_cast<char*>(address_) + begin * row * static_cast<int64_t>(size_of(dtype_));
  return {first, dtype_, Shape(std::span<const int64_t>(dims.data(), shape_.dims().size()))};
}

void check_tensor(const Tensor& t, DType dtype, const Shape& shape, const char* name,
                  std::source_location where) {
  if (t && t.dtype() == dtype && t.shape() == shape) return;
  std::string got = t ? fmt::format("{} {}", name_of(t.dtype()), t.shape().to_string()) : "nothing";
  throw Error(ExitCode::internal,
              fmt::format("{} must be {} {}, got {}", name, name_of(dtype), shape.to_string(), got),
              where);
}

}  // namespace supra
