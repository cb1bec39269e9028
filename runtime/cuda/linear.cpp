// Linear layers: how each is cut into matrix products. The groups that share a matrix lie side by
// side, so that taking the j-th of each share gives one product per matrix, at equal distances: a
// strided batch. Where all groups share one matrix, x is simply N G rows.

#include "runtime/cuda/cuda_ops.h"
#include "runtime/cuda/linear_kernels.h"
#include "runtime/cuda/products/products.h"
#include "runtime/linear_sizes.h"

namespace supra::cuda {
namespace {

char* offset(const Tensor& t, int64_t elements) {
  if (!t) return nullptr;
  return static_cast<char*>(t.address()) + elements * static_cast<int64_t>(size_of(t.dtype()));
}

/// A grouped layer as `batch` ordinary ones of `rows` rows, `repeats` times over. Group j + repeats
/// b is the b-th of the j-th time.
struct Batching {
  int64_t rows, repeats, batch;
  MatrixLayout x, y;  ///< of the j-th time, which begins at column j * in, respectively j * out

  explicit Batching(const LinearSizes& s)
      : rows(s.rows),
        repeats(s.sharing()),
        batch(s.weights),
        x{s.groups * s.in, repeats * s.in},
        y{s.groups * s.out, repeats * s.out} {
    if (s.weights > 1) return;
    rows = s.rows * s.groups;
    repeats = 1;
    x = {s.in, 0};
    y = {s.out, 0};
  }
};

MatrixLayout transposed(MatrixLayout m) {
  m.transposed = true;
  return m;
}

}  // namespace

void CudaOps::linear_forward(const LinearForward& op) {
  const LinearSizes s(op.x, op.w, op.y);
  const Batching b(s);
  ProductShape shape{.rows = b.rows,
                     .columns = s.out,
                     .inner = s.in,
                     .batch = b.batch,
                     .input = op.x.dtype(),
                     .output = op.y.dtype(),
                     .a = b.x,
                     .b = {s.in, s.out * s.in, true},
                     .c = b.y};
  const auto data_to = [&](const Tensor& y, int64_t j) -> ProductData {
    return {.a = offset(op.x, j * s.in),
            .b = op.w.address(),
            .c = offset(y, j * s.out),
            .addend = shape.add ? offset(op.residual, j * s.out) : nullptr,
            .bias = shape.bias ? op.bias.address() : nullptr};
  };
  const auto multiply_all = [&](const Tensor& y) {
    for (int64_t j = 0; j < b.repeats; ++j) products_->multiply(shape, data_to(y, j));
  };

  // In one: everything but a relu before an addition, and a bias of another type than y.
  shape.add = static_cast<bool>(op.residual);
  shape.bias = static_cast<bool>(op.bias);
  shape.bias_batch_stride = shape.bias && b.batch > 1 ? s.out : 0;
  shape.relu = op.relu;
  bool fused = !(op.relu && op.residual) && !(op.bias && op.bias.dtype() != op.y.dtype());
  for (int64_t j = 0; fused && j < b.repeats; ++j) {
    fused = products_->supports(shape, data_to(op.y, j));
  }
  if (fused) {
    multiply_all(op.y);
    return;
  }

  // In two: the sums in fp32, then the rest, rounded once.
  shape.add = shape.bias = shape.relu = false;
  shape.bias_batch_stride = 0;
  shape.output = DType::fp32;
  const Tensor sums(workspace_.take_array<float>(op.y.numel()), DType::fp32, op.y.shape());
  multiply_all(sums);
  finish_linear(sums, op, s, stream_);
}

void CudaOps::linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx, bool add) {
  const LinearSizes s(dx, w, dy);
  const Batching b(s);
  const ProductShape shape{.rows = b.rows,
                           .columns = s.in,
                           .inner = s.out,
                           .batch = b.batch,
                           .input = dy.dtype(),
                           .output = dx.dtype(),
                           .a = b.y,
                           .b = {s.in, s.out * s.in},
                           .c = b.x,
                           .add = add};
  for (int64_t j = 0; j < b.repeats; ++j) {
    void* const to = offset(dx, j * s.in);
    products_->multiply(
        shape,
        {.a = offset(dy, j * s.out), .b = w.address(), .c = to, .addend = add ? to : nullptr});
  }
}

void CudaOps::linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw) {
  const LinearSizes s(x, dw, dy);
  const Batching b(s);
  const ProductShape shape{.rows = s.out,
                           .columns = s.in,
                           .inner = b.rows,
                           .batch = b.batch,
                           .input = dy.dtype(),
                           .output = DType::fp32,
                           .a = transposed(b.y),
                           .b = b.x,
                           .c = {s.in, s.out * s.in},
                           .add = true};
  for (int64_t j = 0; j < b.repeats; ++j) {
    products_->multiply(shape, {.a = offset(dy, j * s.out),
                                .b = offset(x, j * s.in),
                                .c = dw.data<float>(),
                                .addend = dw.data<float>()});
  }
}

void CudaOps::relu_bias_backward(const Tensor& y, const Tensor& dy, const Tensor& dz,
                                 const Tensor& dbias) {
  relu_backward(y, dy, dz, dbias, multiprocessors_, workspace_, stream_);
}

}  // namespace supra::cuda
