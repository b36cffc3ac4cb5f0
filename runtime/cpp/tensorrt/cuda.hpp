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

struct Free {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct FreeHost {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
using DeviceMemory = std::unique_ptr<void, Free>;
using HostMemory = std::unique_ptr<void, FreeHost>;

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
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a CUDA stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }
  void synchronize() const { check(cudaStreamSynchronize(stream_), "running the engine"); }

 private:
  cudaStream_t stream_ = nullptr;
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
    const cudaError_t status = cudaGraphInstantiateWithFlags(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "making a CUDA graph");
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(executable_); }
  void launch(const Stream& stream) const { check(cudaGraphLaunch(executable_, stream.get()), "running the engine"); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace gridpool::cuda
