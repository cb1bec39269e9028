#pragma once
// Matrix products on one stream, by cuBLASLt. Everything here is row-major; how that becomes
// cuBLASLt's column-major is the business of products.cpp alone.
//
// The first call of a shape makes its plan: descriptors and an algorithm. cuBLASLt's heuristic
// orders the candidates by the time it expects. Those that round as its first one does, to the last
// bit, over all of a large random product, are timed, and the fastest is kept. So timing, which is
// never the same twice, decides how long a product takes and not what comes out of it: a run gives
// the same bits each time, on every rank and when it resumes, with one version of cuBLASLt on one
// kind of GPU. SUPRA_PRODUCTS=heuristic in the environment always keeps the first. Products too
// small to tell algorithms apart by their bits keep the first too, and so do those for which no
// memory is left to try them in; the results are the same.
//
// Excluded are algorithms that add partial sums in another type than fp32, or in an order that is
// not fixed.

#include <compare>
#include <cstdint>
#include <memory>

#include <cuda_runtime.h>

#include "runtime/dtype.h"

namespace supra::cuda {

/// A matrix of a product, or as many as the product's batch. Strides are in elements.
struct MatrixLayout {
  int64_t row_stride = 0, batch_stride = 0;
  bool transposed = false;  ///< in memory lies its transpose, row-major
  auto operator<=>(const MatrixLayout&) const = default;
};

/// C [rows, columns] = A [rows, inner] B [inner, columns] (+ addend) (+ bias [columns]), then relu.
/// Sums are fp32, rounded once. Allowed are fp32 inputs with fp32 outputs, and bf16 inputs with
/// either. The addend is laid out and typed as C; the bias is typed as C.
struct ProductShape {
  int64_t rows = 0, columns = 0, inner = 0, batch = 1;
  DType input = DType::fp32, output = DType::fp32;
  MatrixLayout a, b, c;  ///< C is not transposed
  bool add = false;
  bool bias = false;
  int64_t bias_batch_stride = 0;
  bool relu = false;
  auto operator<=>(const ProductShape&) const = default;
};

struct ProductData {
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  const void* addend = nullptr;  ///< may be c; null without `add`
  const void* bias = nullptr;
};

class Products {
 public:
  explicit Products(cudaStream_t stream);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  /// Whether cuBLASLt has an algorithm for it at these addresses. True without bias and relu.
  bool supports(const ProductShape& shape, const ProductData& data);
  void multiply(const ProductShape& shape, const ProductData& data);

  /// Allocated once: cuBLASLt's scratch memory.
  static constexpr size_t workspace_bytes = size_t{32} << 20;  // what NVIDIA advises for Hopper

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace supra::cuda
