// gridpool::launch without a GPU: the launches of st_gridpool.cu, handed to the stand-in driver, on the stand-in runtime's stream.
// With it kernel_on_gpu.cpp, the file that a GPU machine runs, runs here first.
#include <cstdlib>

#include "../../../plugins/csrc/plan.h"
#include "../../../plugins/csrc/st_gridpool.h"
#include "../../../tests/runtime/cpp/native/cuda/stand_in_runtime.hpp"

extern "C" int cuLaunchKernel(void* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                              void* stream, void** parameters, void** extra);

namespace gridpool {

cudaError_t launch(const Plan& plan, const int* device_plan, DType dtype, int hidden, float temperature, float order, const void* x,
                   void* scratch, void* out, cudaStream_t stream) {
  static const char* const names[] = {"float32", "float16", "bfloat16"};
  setenv("STAND_IN_DTYPE", names[static_cast<int>(dtype)], 1);
  Args args = plan.args(hidden, dtype == DType::kFloat ? 4 : 8, temperature, order);
  const Choice choice = choose(args, 227 << 10, 1);
  for (int number = 0; number < plan.launches(); ++number) {
    Launch launch = plan.launch(args, choice, number);
    const auto blocks = static_cast<unsigned>(plan.blocks(launch, number));
    stand_in_enqueue(stream, [=]() mutable {  // mutable: a launch points at its parameters without const
      void* parameters[] = {&args, &device_plan, &x, &scratch, &out, &launch};
      cuLaunchKernel(nullptr, blocks, 1, 1, static_cast<unsigned>(choice.threads), static_cast<unsigned>(choice.groups), 1,
                     static_cast<unsigned>(choice.shared_bytes()), stream, parameters, nullptr);
    });
  }
  return cudaSuccess;
}

}  // namespace gridpool
