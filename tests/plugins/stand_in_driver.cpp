// A libcuda.so.1 without a GPU: device memory is the host's, and a launch runs the kernel's own entry, `run`, on the CPU.
//
// cuda-bindings loads it like NVIDIA's, so plugins/kernel/launch.py is tested with the real bindings, up to grid, block and argument layout,
// and the kernel with its threads, shuffles and barriers. STAND_IN_DTYPE names the dtype, which a launch does not carry.
#include "cuda_on_cpu.h"

#include <dlfcn.h>

#include <string>

#include "../../plugins/csrc/plan.h"

using namespace gridpool;

template <class T, int ORDER>
static void run_one(const Choice& choice, const Args& args, const int* plan, const Vec* x, Vec* scratch, Vec* out, const Launch& at) {
  if (choice.window == 0) return run<T, ORDER, kScratch, 0, 1>(args, plan, x, scratch, out, at);
  if (choice.window == 3) return run<T, ORDER, kScratch, 3, 1>(args, plan, x, scratch, out, at);
  if (choice.vectors == 1) {
    switch (choice.threads) {
      case 32: return run_walks<T, ORDER, 1, 2, 32>(args, plan, x, scratch, out, at);
      case 64: return run_walks<T, ORDER, 1, 2, 64>(args, plan, x, scratch, out, at);
      case 96: return run_walks<T, ORDER, 1, 2, 96>(args, plan, x, scratch, out, at);
      default: return run_walks<T, ORDER, 1, 2, 128>(args, plan, x, scratch, out, at);
    }
  }
  switch (choice.threads) {
    case 32: return run_walks<T, ORDER, 2, 2, 32>(args, plan, x, scratch, out, at);
    case 64: return run_walks<T, ORDER, 2, 2, 64>(args, plan, x, scratch, out, at);
    case 96: return run_walks<T, ORDER, 2, 2, 96>(args, plan, x, scratch, out, at);
    case 128: return run_walks<T, ORDER, 2, 2, 128>(args, plan, x, scratch, out, at);
    case 224: return run_walks<T, ORDER, 2, 2, 224>(args, plan, x, scratch, out, at);
    case 384: return run_walks<T, ORDER, 2, 2, 384>(args, plan, x, scratch, out, at);
    case 512: return run_walks<T, ORDER, 2, 2, 512>(args, plan, x, scratch, out, at);
    default: fprintf(stderr, "no block of %d threads here\n", choice.threads), abort();
  }
}

template <class T>
static void launch(Index grid, Index block, const Choice& choice, const Args& args, void** p) {
  const int* plan = *static_cast<const int**>(p[1]);
  const Vec* x = *static_cast<const Vec**>(p[2]);
  Vec *scratch = *static_cast<Vec**>(p[3]), *out = *static_cast<Vec**>(p[4]);
  const Launch& at = *static_cast<const Launch*>(p[5]);
  launch_on_cpu(grid, block, static_cast<size_t>(choice.shared_bytes()), [&] {
    args.order == 2.0f ? run_one<T, 2>(choice, args, plan, x, scratch, out, at)
                       : run_one<T, kAnyOrder>(choice, args, plan, x, scratch, out, at);
  });
}

constexpr int kShared = 227 << 10;  // bytes that a block may ask for, of compute capability 9.0
constexpr int kMultiprocessors = 1;

using Pointer = unsigned long long;

static Pointer poisoned(size_t size) {
  void* memory = aligned_alloc(64, (size + 63) / 64 * 64);
  memset(memory, 0xff, size);
  return reinterpret_cast<Pointer>(memory);
}

extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = context, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  return *value = attribute == 75 ? 9 : attribute == 97 ? kShared : attribute == 16 ? kMultiprocessors : 0, 0;
}
int cuFuncSetAttribute(void*, int attribute, int value) { return attribute != 8 || value > kShared; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuCtxPushCurrent_v2(void*) { return 0; }
int cuCtxPopCurrent_v2(void**) { return 0; }
int cuMemAllocAsync(Pointer* memory, size_t size, void* stream) { return *memory = poisoned(size), stream == nullptr; }
int cuMemFreeAsync(Pointer memory, void* stream) { return free(reinterpret_cast<void*>(memory)), stream == nullptr; }
int cuMemAlloc_v2(Pointer* memory, size_t size) { return *memory = poisoned(size), 0; }
int cuMemcpyHtoD_v2(Pointer to, const void* from, size_t size) { return memcpy(reinterpret_cast<void*>(to), from, size), 0; }
int cuModuleLoadData(void** module, const void* image) { return *module = const_cast<void*>(image), image == nullptr; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  return *function = module, strcmp(name, "st_gridpool") != 0;
}
int cuPointerGetAttribute(void* data, int, Pointer) { return *static_cast<int*>(data) = 0, 0; }

int cuLaunchKernel(void*, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** p,
                   void** extra) {
  const Args& args = *static_cast<Args*>(p[0]);
  const Choice choice = choose(args, kShared, kMultiprocessors);
  if (static_cast<int>(shared) != choice.shared_bytes()) return 1;
  if (choice.threads != static_cast<int>(bx) || choice.groups != static_cast<int>(by) || gy != 1 || gz != 1 || bz != 1 || extra || !stream) return 1;
  const char* dtype = getenv("STAND_IN_DTYPE");
  if (!strcmp(dtype, "float32")) launch<Float>({gx, gy, 1}, {bx, by, 1}, choice, args, p);
  if (!strcmp(dtype, "float16")) launch<Half>({gx, gy, 1}, {bx, by, 1}, choice, args, p);
  if (!strcmp(dtype, "bfloat16")) launch<BFloat16>({gx, gy, 1}, {bx, by, 1}, choice, args, p);
  return 0;
}

// As cuda.h lays them out; only the attribute that this project sets.
struct LaunchAttribute {
  int id, pad;
  union {
    char bytes[64];
    int allowed;
  };
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  void* stream;
  LaunchAttribute* attributes;
  unsigned count;
};

// The first launch of a call must wait for what is on the stream already, the others overlap the one before: attribute 6, programmatic
// stream serialisation. Blocks run one after another here, so only the request is checked.
int cuLaunchKernelEx(const LaunchConfig* c, void* kernel, void** p, void** extra) {
  const bool overlaps = c->count == 1 && c->attributes[0].id == 6 && c->attributes[0].allowed == 1;
  if (c->count != overlaps || overlaps != (static_cast<const Launch*>(p[5])->first_task > 0)) return 1;
  return cuLaunchKernel(kernel, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2], c->shared, c->stream, p, extra);
}

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
  void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  const std::string versioned = std::string(name) + "_v2";
  *function = dlsym(self, versioned.c_str());
  if (!*function) *function = dlsym(self, name);
  if (status) *status = *function == nullptr;
  return *function ? 0 : 500;
}
}
