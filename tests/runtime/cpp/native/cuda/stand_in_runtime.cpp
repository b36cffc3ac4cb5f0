// Device memory is the host's, as malloc gives it, so that the address sanitizer sees what compute-sanitizer would. A stream runs at
// once what it is given, or records it while it is captured. Also the four calls of the driver that cuda_driver.cpp makes.
#include "stand_in_runtime.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};
struct CUstream_st {
  bool captured = false, spoiled = false;
  std::vector<std::function<void()>> work;
};

namespace {

constexpr char kName[] = "Stand-in GPU";
constexpr size_t kMemory = size_t{1} << 34;
cudaError_t last = cudaSuccess;

cudaError_t result(cudaError_t status) {
  if (status != cudaSuccess) last = status;
  return status;
}

cudaError_t allocate(void** memory, size_t size) {
  if (size > kMemory) return result(cudaErrorMemoryAllocation);
  *memory = std::aligned_alloc(64, (size + 63) / 64 * 64);
  return *memory ? cudaSuccess : result(cudaErrorMemoryAllocation);
}

cudaError_t release(void* memory) { return std::free(memory), cudaSuccess; }

}  // namespace

void stand_in_enqueue(cudaStream_t stream, std::function<void()> work) {
  if (stream->captured) {
    stream->work.push_back(std::move(work));
  } else {
    work();
  }
}

extern "C" {
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
  std::snprintf(found->name, sizeof found->name, "%s", kName);
  return found->major = 9, found->minor = 0, cudaSuccess;
}
cudaError_t cudaDeviceReset() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorString(cudaError_t status) {
  if (status == cudaErrorMemoryAllocation) return "out of memory";
  return status == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing" : "another error";
}

cudaError_t cudaMalloc(void** memory, size_t size) { return allocate(memory, size); }
cudaError_t cudaMallocHost(void** memory, size_t size) { return allocate(memory, size); }
cudaError_t cudaFree(void* memory) { return release(memory); }
cudaError_t cudaFreeHost(void* memory) { return release(memory); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
  return stand_in_enqueue(stream, [=] { std::memcpy(to, from, size); }), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  return stand_in_enqueue(stream, [=] { std::memset(to, value, size); }), cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = new CUstream_st, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!stream->captured) return cudaSuccess;
  return stream->spoiled = true, result(cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->captured) return result(cudaErrorIllegalState);
  return stream->captured = true, stream->work.clear(), cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const bool spoiled = std::exchange(stream->spoiled, false);
  stream->captured = false, *graph = spoiled ? nullptr : new CUgraph_st{std::move(stream->work)};
  return spoiled ? result(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return *executable = new CUgraphExec_st{graph->work}, cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& work : executable->work) stand_in_enqueue(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }

int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, static_cast<size_t>(size), "%s", kName), 0; }
}
