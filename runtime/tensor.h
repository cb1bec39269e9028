#pragma once
// A tensor is a view: address, dtype, shape; dense and row-major. It owns nothing, and copying it
// copies no data. Memory belongs to an Arena or a Buffer. An empty tensor (`!t`) stands for "not
// given".

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "runtime/dtype.h"
#include "runtime/error.h"

namespace supra {

/// Up to four dimensions.
class Shape {
 public:
  static constexpr int max_rank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  int64_t numel() const;
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  /// "[2, 64, 9, 64]"
  std::string to_string() const;
  bool operator==(const Shape&) const = default;

 private:
  std::array<int64_t, max_rank> dims_{};
  int rank_ = 0;
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(void* address, DType dtype, Shape shape)
      : address_(address), dtype_(dtype), shape_(shape) {}

  explicit operator bool() const { return address_ != nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t size(int i) const { return shape_[i]; }
  int64_t numel() const { return shape_.numel(); }
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype_); }
  void* address() const { return address_; }

  /// The elements, whose type must be the tensor's. Null for an empty tensor.
  template <class T>
  T* data() const {
    SUPRA_CHECK(!address_ || dtype_of<T> == dtype_, "tensor {} holds {}, read as {}",
                shape_.to_string(), name_of(dtype_), name_of(dtype_of<T>));
    return static_cast<T*>(address_);
  }

  /// The same elements under another shape of equal size. An empty tensor stays empty.
  Tensor view(Shape shape) const;
  /// Elements [begin, end) of the first dimension.
  Tensor slice(int64_t begin, int64_t end) const;

 private:
  void* address_ = nullptr;
  DType dtype_ = DType::fp32;
  Shape shape_;
};

/// Throws unless `t` has this shape and dtype; `name` is what the error calls it.
void check_tensor(const Tensor& t, DType dtype, const Shape& shape, const char* name,
                  std::source_location where = std::source_location::current());

}  // namespace supra
