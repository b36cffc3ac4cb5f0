// One fault for each tool of compute-sanitizer: a tool that does not find its own shows nothing about the kernel.
//
//   planted-faults memcheck | racecheck | initcheck
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace {

constexpr int kThreads = 64;

__global__ void writes_out_of_bounds(int* values) { values[threadIdx.x + 1] = 1; }

__global__ void reads_without_a_barrier(int* values) {
  __shared__ int shared[kThreads];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  values[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];  // written by the other warp
}

__global__ void reads_what_nobody_wrote(int* values) { values[threadIdx.x] += 1; }

}  // namespace

int main(int count, char** words) {
  const char* tool = count > 1 ? words[1] : "";
  int* values = nullptr;
  if (cudaMalloc(&values, kThreads * sizeof(int)) != cudaSuccess) return std::printf("no memory\n"), 2;
  if (!std::strcmp(tool, "memcheck"))
    writes_out_of_bounds<<<1, kThreads>>>(values);
  else if (!std::strcmp(tool, "racecheck"))
    reads_without_a_barrier<<<1, kThreads>>>(values);
  else if (!std::strcmp(tool, "initcheck"))
    reads_what_nobody_wrote<<<1, kThreads>>>(values);
  else
    return std::printf("no fault named \"%s\"\n", tool), 2;
  const cudaError_t status = cudaDeviceSynchronize();
  std::printf("planted for %s: %s\n", tool, cudaGetErrorString(status));
  cudaFree(values);
  cudaDeviceReset();
  return 0;
}
