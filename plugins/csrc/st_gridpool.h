// StGridPool for C++ callers: [T, H, W, D] tokens on a GPU, by the tables of plugins/plan.py.
#pragma once

#include <cuda_runtime_api.h>

namespace gridpool {

struct Plan;  // plan.h
enum class DType { kFloat, kHalf, kBFloat16 };

// Queues the op on `stream`. `plan` has been checked with plan.fault(), `device_plan` is a copy of its ints on the GPU; x and out are
// 16-byte aligned, hidden (D) is a multiple of 8, scratch holds plan.scratch_tokens() * hidden elements.
cudaError_t launch(const Plan& plan, const int* device_plan, DType dtype, int hidden, float temperature, float order, const void* x,
                   void* scratch, void* out, cudaStream_t stream);

}  // namespace gridpool
