// What tensorrt/cuda.hpp and src/cuda_driver.cpp do on a GPU: a line a fact, "ok" or "WRONG"; exit status 1 where one is wrong.
//
//   cuda-on-gpu          the facts
//   cuda-on-gpu --leak   the same, and 1 MiB is never freed: compute-sanitizer's leak check must say so
//
// It ends with cudaDeviceReset, without which compute-sanitizer does not look for leaks. stand_in_runtime.cpp is what it runs on
// without a GPU.
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "../message_of.hpp"
#include "backend.hpp"
#include "cuda.hpp"

using namespace gridpool;

namespace {

constexpr size_t kTooMuch = size_t{1} << 60;
int wrong = 0, facts = 0;

void fact(const char* name, bool holds, const std::string& seen = "") {
  ++facts, wrong += !holds;
  std::printf("%s: %s%s%s\n", holds ? "ok" : "WRONG", name, seen.empty() ? "" : ": ", seen.c_str());
  std::fflush(stdout);
}

bool begins_with(const std::string& text, const std::string& prefix) { return text.compare(0, prefix.size(), prefix) == 0; }

/// Device memory that holds `values`, and what it holds now.
class Bytes {
 public:
  Bytes(const cuda::Stream& stream, const std::vector<char>& values)
      : stream_(stream), size_(values.size()), device_(cuda::allocate(size_)), host_(cuda::allocate_host(size_)) {
    std::memcpy(host_.get(), values.data(), size_);
    cuda::check(cudaMemcpyAsync(device_.get(), host_.get(), size_, cudaMemcpyHostToDevice, stream_.get()), "feeding");
    stream_.synchronize();
    std::memset(host_.get(), 0x55, size_);  // so that what comes back is what was fetched
  }

  std::vector<char> now() {
    cuda::check(cudaMemcpyAsync(host_.get(), device_.get(), size_, cudaMemcpyDeviceToHost, stream_.get()), "fetching");
    stream_.synchronize();
    const char* first = static_cast<const char*>(host_.get());
    return {first, first + size_};
  }

  void zero(size_t count) { cuda::check(cudaMemsetAsync(device_.get(), 0, count, stream_.get()), "clearing"); }

 private:
  const cuda::Stream& stream_;
  size_t size_;
  cuda::DeviceMemory device_;
  cuda::HostMemory host_;
};

void driver() {
  cudaDeviceProp found{};
  cuda::check(cudaGetDeviceProperties(&found, 0), "asking for the GPU");
  const CudaDriver& asked = cuda_driver();
  fact("the driver finds a GPU", asked.fault.empty(), asked.fault);
  fact("the driver and the runtime give it the same name", asked.name == found.name, asked.name + " and " + found.name);
  fact("its compute capability is one that TensorRT knows", found.major >= 7, std::to_string(found.major) + "." + std::to_string(found.minor));
}

void memory() {
  const cuda::Stream stream;
  std::vector<char> values(4000001);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<char>(i * 31 + i / 251);
  fact("what is copied to the GPU comes back", Bytes(stream, values).now() == values);
  fact("no bytes have an address too", cuda::allocate(0) && cuda::allocate_host(0));
}

void replay() {
  const cuda::Stream stream;
  const std::vector<char> ones(8, 1), half = {0, 0, 0, 0, 1, 1, 1, 1}, none(8, 0);
  Bytes bytes(stream, ones);
  const cuda::Graph graph(stream, [&] { bytes.zero(4); });
  fact("a captured launch does not run", bytes.now() == ones);
  graph.launch(stream);
  fact("it runs when it is replayed", bytes.now() == half);
  bytes.zero(8);
  graph.launch(stream);
  fact("it runs after what was queued before it", bytes.now() == none);
}

void failed_capture() {
  const cuda::Stream stream;
  const std::vector<char> ones(8, 1), half = {0, 0, 0, 0, 1, 1, 1, 1};
  Bytes bytes(stream, ones);
  std::string why = message_of<EngineError>([&] {
    const cuda::Graph graph(stream, [&] {
      bytes.zero(8);
      throw EngineError("no");
    });
  });
  fact("a launch that throws in capture says why", why == "no", why);
  fact("nothing of it runs, and the stream goes on", bytes.now() == ones);
  why = message_of<EngineError>([&] {
    const cuda::Graph graph(stream, [&] { stream.synchronize(); });  // what a capture forbids
  });
  fact("a call that CUDA refuses in capture is CUDA's words", begins_with(why, "running the engine: CUDA says operation not permitted when"), why);
  fact("the refusal is not left for the next call", cudaPeekAtLastError() == cudaSuccess);
  const cuda::Graph graph(stream, [&] { bytes.zero(4); });
  graph.launch(stream);
  fact("the stream can be captured again", bytes.now() == half);
}

void too_much() {
  const cuda::Stream stream;
  std::string why = message_of<EngineError>([] { cuda::allocate(kTooMuch); });
  fact("too much memory is CUDA's words", why == "allocating 1099511627776 MiB on the GPU: CUDA says out of memory (error 2)", why);
  fact("that is not left for the next call", cudaPeekAtLastError() == cudaSuccess);
  why = message_of<EngineError>([] { cuda::allocate_host(kTooMuch); });
  fact("too much page-locked memory is an error too", begins_with(why, "page-locking 1099511627776 MiB: CUDA says "), why);
  fact("that is not left for the next call either", cudaPeekAtLastError() == cudaSuccess);
  const std::vector<char> ones(8, 1);
  fact("the next allocation works", Bytes(stream, ones).now() == ones);
}

template <typename Part>
void attempt(const Part& part) {
  try {
    part();
  } catch (const std::exception& error) {
    fact("no call fails that should work", false, error.what());
  }
}

}  // namespace

int main(int count, char** words) {
  const bool leak = count > 1 && !std::strcmp(words[1], "--leak");
  for (void (*part)() : {driver, memory, replay, failed_capture, too_much}) attempt(part);
  attempt([=] {
    if (leak) cuda::allocate(1 << 20).release();
    cuda::check(cudaDeviceReset(), "ending");
  });
  std::printf("%d facts, %d wrong\n", facts, wrong);
  std::fflush(stdout);  // a leak checker ends the process before the library would
  return wrong != 0;
}
