#include "runtime/cuda/graph.h"

namespace supra::cuda {

Graph::Graph(cudaStream_t stream, const std::function<void()>& issue) {
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
  try {
    issue();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);  // the stream must be usable again; the error goes on
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(status, "cudaGraphInstantiate");
}

Graph::~Graph() {
  if (executable_) cudaGraphExecDestroy(executable_);
}

}  // namespace supra::cuda
