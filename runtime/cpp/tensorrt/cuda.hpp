// The few calls of the CUDA runtime that an engine takes, with owners; a failed one is an EngineError in one line.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "gridpool/error.hpp"

namespace gridpool::cuda {

inline void check(cudaError_t status, const std::string& doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it: the next call must not report this one's failure
  throw EngineError(doing + ": CUDA says " + cudaGetErrorString(status) + " (error " + std::to_string(static_cast<int>(status)) + ")");
}

/// Deletes what `release` releases.
template <auto release>
struct Release {
  template <typename Thing>
  void operator()(Thing* thing) const {
    release(thing);
  }
};
using DeviceMemory = std::unique_ptr<void, Release<cudaFree>>;
using HostMemory = std::unique_ptr<void, Release<cudaFreeHost>>;

inline DeviceMemory allocate(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes ? bytes : 1), "allocating " + std::to_string(bytes >> 20) + " MiB on the GPU");
  return DeviceMemory(memory);
}

/// Page-locked memory, which the GPU copies from and to without a detour.
inline HostMemory allocate_host(size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes ? bytes : 1), "page-locking " + std::to_string(bytes >> 20) + " MiB");
  return HostMemory(memory);
}

class Stream {
 public:
  Stream() {
    cudaStream_t made = nullptr;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "making a CUDA stream");
    stream_.reset(made);
  }
  cudaStream_t get() const { return stream_.get(); }
  void synchronize() const { check(cudaStreamSynchronize(get()), "running the engine"); }

 private:
  std::unique_ptr<CUstream_st, Release<cudaStreamDestroy>> stream_;
};

/// What a launch put on a stream, to be launched again at once.
class Graph {
 public:
  /// Record `launch`; nothing runs meanwhile. EngineError where the stream can't be captured.
  template <typename Launch>
  Graph(const Stream& stream, const Launch& launch) {
    check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "capturing a CUDA graph");
    cudaGraph_t graph = nullptr;
    try {
      launch();
    } catch (...) {  // a failed launch leaves the stream in capture mode, where nothing else can run
      cudaStreamEndCapture(stream.get(), &graph);
      if (graph) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check(cudaStreamEndCapture(stream.get(), &graph), "capturing a CUDA graph");
    const std::unique_ptr<CUgraph_st, Release<cudaGraphDestroy>> captured(graph);
    cudaGraphExec_t executable = nullptr;
    check(cudaGraphInstantiateWithFlags(&executable, graph, 0), "making a CUDA graph");
    executable_.reset(executable);
  }
  void launch(const Stream& stream) const { check(cudaGraphLaunch(executable_.get(), stream.get()), "running the engine"); }

 private:
  std::unique_ptr<CUgraphExec_st, Release<cudaGraphExecDestroy>> executable_;
};

}  // namespace gridpool::cuda
