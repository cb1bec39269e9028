#include "model/layers/head.h"

#include <algorithm>

namespace supra {
namespace {

struct Normed {
  Tensor h, rstd;
  Normed(const Context& c, const HeadTensors& w, const Tensor& x)
      : h(c.arena.allocate(MemoryClass::workspace, c.dtype, x.shape())),
        rstd(c.arena.allocate(MemoryClass::workspace, DType::fp32, {x.size(0)})) {
    c.ops.rms_norm_forward(x, w.norm, static_cast<float>(c.config.norm_eps), h, rstd);
  }
};

}  // namespace

int64_t head_chunk(int64_t vocabulary) {
  constexpr int64_t logits = int64_t{3} << 23;
  return std::max<int64_t>(64, logits / vocabulary / 64 * 64);
}

void head_forward(const Context& c, const HeadTensors& w, const Tensor& x, const Tensor& targets,
                  const Tensor& nll, const Tensor& lse) {
  const Arena::Scope scope(c.arena);
  const int64_t rows = x.size(0), vocabulary = c.config.vocabulary;
  const int64_t chunk = std::min(rows, head_chunk(vocabulary));
  const Normed n(c, w, x);
  const Tensor logits = c.arena.allocate(MemoryClass::workspace, DType::fp32, {chunk, vocabulary});
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t end = std::min(begin + chunk, rows);
    const Tensor part = logits.slice(0, end - begin);
    c.ops.linear_forward({.x = n.h.slice(begin, end), .w = w.output, .y = part});
    c.ops.cross_entropy({.logits = part,
                         .targets = targets.slice(begin, end),
                         .nll = nll.slice(begin, end),
                         .lse = lse.slice(begin, end)});
  }
}

void head_forward_backward(const Context& c, const HeadTensors& w, const HeadTensors& grad,
                           const Tensor& x, const Tensor& targets, float z_loss,
                           float gradient_scale, const Tensor& nll, const Tensor& lse,
                           const Tensor& dx) {
  const Arena::Scope scope(c.arena);
  const int64_t rows = x.size(0), vocabulary = c.config.vocabulary;
  const int64_t chunk = std::min(rows, head_chunk(vocabulary));
  const Normed n(c, w, x);
  const Tensor dh = c.arena.allocate(MemoryClass::workspace, c.dtype, x.shape());
  const Tensor logits = c.arena.allocate(MemoryClass::workspace, DType::fp32, {chunk, vocabulary});
  const Tensor dlogits = c.dtype == DType::fp32 ? logits
                                                : c.arena.allocate(MemoryClass::workspace, c.dtype,
                                                                   {chunk, vocabulary});
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t end = std::min(begin + chunk, rows);
    const Tensor part = logits.slice(0, end - begin), dpart = dlogits.slice(0, end - begin);
    const Tensor h = n.h.slice(begin, end);
    c.ops.linear_forward({.x = h, .w = w.output, .y = part});
    c.ops.cross_entropy({.logits = part,
                         .targets = targets.slice(begin, end),
                         .z_loss = z_loss,
                         .gradient_scale = gradient_scale,
                         .nll = nll.slice(begin, end),
                         .lse = lse.slice(begin, end),
                         .dlogits = dpart});
    c.ops.linear_backward_input(dpart, w.output, dh.slice(begin, end), false);
    if (grad.output) c.ops.linear_backward_weight(dpart, h, grad.output);
  }
  c.ops.rms_norm_backward(x, w.norm, n.rstd, dh, {}, dx, grad.norm);
}

void head_logits(const Context& c, const HeadTensors& w, const Tensor& x, const Tensor& logits) {
  const Arena::Scope scope(c.arena);
  const Normed n(c, w, x);
  c.ops.linear_forward({.x = n.h, .w = w.output, .y = logits});
}

}  // namespace supra
