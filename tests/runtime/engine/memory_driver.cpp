// A libcuda.so.1 without a GPU: one device whose memory is the host's, streams that run at once, graphs that repeat one fill.
//
// cuda-bindings loads it like NVIDIA's, so runtime/engine/cuda.py is tested with the real bindings.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>

using Pointer = unsigned long long;

static void* const kContext = reinterpret_cast<void*>(5);
static void* const kStream = reinterpret_cast<void*>(7);
static int live = 0;  // allocations, streams, graphs and contexts that are current
static bool capturing = false;
static struct { Pointer at; unsigned char value; size_t size; } fill;  // the one that was captured

static int allocate(void** memory, size_t size) {
  if (size > 1ull << 40) return 2;  // CUDA_ERROR_OUT_OF_MEMORY
  return *memory = malloc(size), ++live, 0;
}

extern "C" {
int live_objects() { return live; }
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 12060, 0; }
int cuGetErrorString(int status, const char** words) { return *words = status == 2 ? "out of memory" : "unknown", 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char* name, int size, int) { return strncpy(name, "Orin", size), 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) { return *value = attribute == 75 ? 8 : attribute == 76 ? 7 : 0, 0; }
int cuDeviceTotalMem_v2(size_t* size, int) { return *size = 32ull << 30, 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = kContext, 0; }
int cuCtxPushCurrent_v2(void* context) { return ++live, context != kContext; }
int cuCtxPopCurrent_v2(void** context) { return *context = kContext, --live, 0; }
int cuMemAlloc_v2(Pointer* memory, size_t size) { return allocate(reinterpret_cast<void**>(memory), size); }
int cuMemAllocHost_v2(void** memory, size_t size) { return allocate(memory, size); }
int cuMemFree_v2(Pointer memory) { return free(reinterpret_cast<void*>(memory)), --live, 0; }
int cuMemFreeHost(void* memory) { return free(memory), --live, 0; }
int cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t size, void* stream) {
  return memcpy(reinterpret_cast<void*>(to), from, size), stream != kStream;
}
int cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t size, void* stream) {
  return memcpy(to, reinterpret_cast<void*>(from), size), stream != kStream;
}
int cuMemsetD8Async(Pointer at, unsigned char value, size_t size, void* stream) {
  if (capturing) fill = {at, value, size};
  else memset(reinterpret_cast<void*>(at), value, size);
  return stream != kStream;
}
int cuStreamCreate(void** stream, unsigned flags) { return *stream = kStream, ++live, flags != 1; }
int cuStreamDestroy_v2(void* stream) { return --live, stream != kStream; }
int cuStreamSynchronize(void* stream) { return stream != kStream; }
int cuStreamBeginCapture_v2(void* stream, int mode) { return capturing = true, stream != kStream || mode != 1; }
int cuStreamEndCapture(void* stream, void** graph) {
  return capturing = false, *graph = reinterpret_cast<void*>(11), ++live, stream != kStream;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
  return *executable = reinterpret_cast<void*>(13), ++live, graph != reinterpret_cast<void*>(11) || flags;
}
int cuGraphDestroy(void*) { return --live, 0; }
int cuGraphExecDestroy(void*) { return --live, 0; }
int cuGraphLaunch(void* executable, void* stream) {
  return memset(reinterpret_cast<void*>(fill.at), fill.value, fill.size), executable != reinterpret_cast<void*>(13) || stream != kStream;
}

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
  void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  const std::string names[] = {std::string(name) + "_v2", std::string(name) + "WithFlags", name};
  *function = nullptr;
  for (const std::string& each : names)
    if (!*function) *function = dlsym(self, each.c_str());
  if (status) *status = *function == nullptr;
  return *function ? 0 : 500;
}
}
