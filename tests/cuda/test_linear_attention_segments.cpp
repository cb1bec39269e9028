// Linear attention's chunked kernels split sequences into segments by the number of
// multiprocessors.

#include <algorithm>

#include <doctest/doctest.h>

#include "runtime/cuda/attention/linear_attention.h"
#include "runtime/cuda/cuda_device.h"
#include "tests/ops/check.h"
#include "tests/ops/linear_attention.h"
#include "tests/ops/run.h"

using namespace supra;
using namespace supra::test;

namespace {

/// The described call, by the chunked kernels as on a device with that many multiprocessors.
Op with_multiprocessors(const LinearAttentionCall& call, int multiprocessors) {
  Op op = linear_attention(call);
  const auto params = [call](const Tensors& t) {
    return LinearAttentionParams{t["slope"],         t["rope_cos"],
                                 t["rope_sin"],      static_cast<float>(call.scale),
                                 call.normalization, static_cast<float>(call.eps)};
  };
  const auto on_stream = [](Device& device, const auto& start) {
    const cudaStream_t stream = dynamic_cast<cuda::CudaDevice&>(device).stream();
    cuda::Workspace workspace(stream);
    start(stream, workspace);
    device.synchronize();
  };
  op.forward = [=](Device& device, const Tensors& t) {
    on_stream(device, [&](cudaStream_t stream, cuda::Workspace& workspace) {
      cuda::fused_linear_attention_forward(
          {params(t), t["q"], t["k"], t["v"], t["state"], t["key_sum"], t["y"], t["statistics"],
           t["state_out"], t["key_sum_out"]},
          stream, workspace, multiprocessors);
    });
  };
  op.backward = [=](Device& device, const Tensors& t) {
    on_stream(device, [&](cudaStream_t stream, cuda::Workspace& workspace) {
      cuda::fused_linear_attention_backward(
          {params(t), t["q"], t["k"], t["v"], t["state"], t["key_sum"], t["y"], t["statistics"],
           t["dy"], t["dstate"], t["dq"], t["dk"], t["dv"], t["dstate_in"]},
          stream, workspace, multiprocessors);
    });
  };
  return op;
}

/// Six chunks of one head: as one segment, and as three of two chunks each.
LinearAttentionCall six_chunks(int64_t d, Normalization normalization) {
  return {.tokens = 330,
          .heads = 1,
          .kv_heads = 1,
          .head_width = d,
          .slopes = normalization == Normalization::denominator ? Slopes::none : Slopes::lightning,
          .normalization = normalization,
          .rope_base = 1e4,
          .scale = 0.1,
          .carried = true};
}
constexpr int multiprocessors_of_splits[] = {1, 2};

void check_accepted(const std::vector<Verdict>& verdicts) {
  for (const Verdict& verdict : verdicts) CHECK_MESSAGE(verdict.accepted(), verdict.to_string());
}

}  // namespace

TEST_CASE("linear attention: right in one segment of many chunks, and in many") {
  cuda::CudaDevice device(0);
  for (const int64_t d : {64, 128}) {
    for (const Normalization normalization :
         {Normalization::group_norm, Normalization::denominator}) {
      for (const int multiprocessors : multiprocessors_of_splits) {
        const Op op = with_multiprocessors(six_chunks(d, normalization), multiprocessors);
        CAPTURE(op.sizes);
        CAPTURE(multiprocessors);
        const Values<double> inputs = draw_inputs(op, DType::bf16, 1);
        const Values<double> results = run(op, device, DType::bf16, inputs);
        check_accepted(check_outputs(op, DType::bf16, inputs, results));
        check_accepted(check_gradients(op, DType::bf16, inputs, results));
      }
    }
  }
}

TEST_CASE("linear attention: a denominator's gradient reaches tokens many chunks earlier") {
  cuda::CudaDevice device(0);
  constexpr int64_t d = 64;
  for (const int multiprocessors : multiprocessors_of_splits) {
    const Op op = with_multiprocessors(six_chunks(d, Normalization::denominator), multiprocessors);
    CAPTURE(multiprocessors);
    Values<double> inputs = draw_inputs(op, DType::bf16, 1);
    // Without values the earlier keys matter through the denominators alone, and without cotangents
    // through those of the last chunk alone.
    for (const char* name : {"v", "dy"}) {
      std::vector<double>& values = inputs.at(name).values;
      std::fill_n(values.begin(), 320 * d, 0.0);
    }
    const Values<double> results = run(op, device, DType::bf16, inputs);
    check_accepted(check_gradients(op, DType::bf16, inputs, results));
  }
}
