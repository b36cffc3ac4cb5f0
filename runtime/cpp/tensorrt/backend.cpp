// TensorRT: engines that `python -m runtime build --backend tensorrt` made, run on the GPU (runtime/engine/tensorrt.py).
//
// Device and page-locked buffers are allocated once, at the largest shape of the engine's profile. A graph of static shapes
// is captured as a CUDA graph after its first run. A state (the KV cache) never leaves the GPU: one buffer where TensorRT
// declares output and input to be the same memory, else two that change places after each run, because TensorRT promises
// nothing for layers that write what they read.
//
// Only names that TensorRT 10.3 to 11.x share are used; a newer one stands behind its version.
#include "backend.hpp"

#include <NvInfer.h>
#include <NvInferPlugin.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "cuda.hpp"
#include "files.hpp"
#include "find_engine.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

/// Keeps TensorRT's last error, because its calls only return null or false. One per process, as TensorRT wants.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    last_ = message;
    std::replace(last_.begin(), last_.end(), '\n', ' ');
  }
  std::string last() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_.empty() ? "no reason given" : last_;
  }

 private:
  std::mutex mutex_;
  std::string last_;
};

Logger& logger() {
  static Logger one;
  return one;
}

std::string version() {
  return format("%d.%d.%d.%d", getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion(), getInferLibBuildVersion());
}

DType dtype_of(const std::string& name, nvinfer1::DataType type) {
  using From = nvinfer1::DataType;
  static const std::map<From, DType> dtypes = {{From::kFLOAT, DType::float32}, {From::kHALF, DType::float16}, {From::kINT64, DType::int64},
                                               {From::kINT32, DType::int32},   {From::kINT8, DType::int8},    {From::kUINT8, DType::uint8},
                                               {From::kBOOL, DType::boolean}};
  const auto found = dtypes.find(type);
  if (found != dtypes.end()) return found->second;
  throw EngineError(name + " has a TensorRT type that this runtime can't feed; export with --precision fp32 or fp16");
}

nvinfer1::Dims dims_of(const std::vector<int64_t>& shape) {
  nvinfer1::Dims dims{};
  if (shape.size() > nvinfer1::Dims::MAX_DIMS) throw EngineError("more dimensions than TensorRT takes");
  dims.nbDims = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

size_t bytes_of(const nvinfer1::Dims& dims, DType dtype) {
  size_t bytes = size_of(dtype);
  for (int32_t i = 0; i < dims.nbDims; ++i) bytes *= static_cast<size_t>(std::max<int64_t>(0, dims.d[i]));
  return bytes;
}

bool is_dynamic(const TensorSpec& spec) {
  return std::any_of(spec.shape.begin(), spec.shape.end(), [](const Dimension& one) { return one.size < 0; });
}

struct TensorRTState : State {
  using State::State;
  struct Buffers {
    cuda::DeviceMemory read, write;  // `write` is null if TensorRT updates in place
  };
  std::map<std::string, Buffers> buffers;  // by the input's name
};

class TensorRTEngine : public Engine {
 public:
  explicit TensorRTEngine(const FoundEngine& found) : Engine("tensorrt", "cuda"), runtime_(nvinfer1::createInferRuntime(logger())) {
    if (!runtime_) throw EngineError("tensorrt could not start: " + logger().last());
    initLibNvInferPlugins(&logger(), "");  // ScatterElements is one of the library's plugins
    if (!found.plugin.empty() && !runtime_->getPluginRegistry().loadLibrary(found.plugin.c_str())) {
      throw EngineError("tensorrt can't load " + found.plugin.string() + ": " + logger().last());
    }
    const MappedFile content(found.file);
    engine_.reset(runtime_->deserializeCudaEngine(content.data(), content.size()));
    if (!engine_) throw EngineError("tensorrt " + version() + " can't load " + found.file.string() + ": " + logger().last());
    context_.reset(engine_->createExecutionContext());
    if (!context_) throw EngineError("tensorrt could not make an execution context: " + logger().last());
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) add(engine_->getIOTensorName(i), found);
    may_capture_ = std::none_of(inputs_.begin(), inputs_.end(), is_dynamic);
    size_buffers();
  }

  std::unique_ptr<State> new_state(const std::map<std::string, std::string>& pairs) override {
    auto state = std::make_unique<TensorRTState>(pairs);
    for (const auto& [input, output] : pairs) {
      const auto from = buffers_.find(input), to = buffers_.find(output);
      if (from == buffers_.end() || to == buffers_.end()) throw EngineError("no pair " + input + " -> " + output + " in this engine");
      if (from->second.bytes != to->second.bytes) throw EngineError(input + " and " + output + " can't share a buffer");
      auto& [read, write] = state->buffers[input];
      read = cuda::allocate(from->second.bytes);
      cuda::check(cudaMemsetAsync(read.get(), 0, from->second.bytes, stream_.get()), "clearing a state");
      if (!is_aliased(output, input)) write = cuda::allocate(to->second.bytes);
    }
    return state;
  }

  std::map<std::string, Tensor> run(const Feeds& feeds, State* state) override {
    auto* kept = static_cast<TensorRTState*>(state);
    check_feeds(inputs_, feeds, state);
    for (const auto& [name, array] : feeds) bind_input(name, array);
    if (kept) {
      for (const auto& [input, buffers] : kept->buffers) {
        bind(input, buffers.read.get());
        bind(state->pairs.at(input), buffers.write ? buffers.write.get() : buffers.read.get());
      }
    }
    const std::vector<const TensorSpec*> wanted = returned(state);
    for (const TensorSpec* spec : wanted) bind(spec->name, buffer(spec->name).device.get());
    launch(state == nullptr);
    std::map<std::string, Tensor> results;
    for (const TensorSpec* spec : wanted) {
      const nvinfer1::Dims dims = context_->getTensorShape(spec->name.c_str());
      Buffer& one = buffer(spec->name);
      cuda::check(cudaMemcpyAsync(one.host.get(), one.device.get(), bytes_of(dims, spec->dtype), cudaMemcpyDeviceToHost, stream_.get()),
                  "fetching " + spec->name);
      results.emplace(spec->name, Tensor::empty(spec->dtype, {dims.d, dims.d + dims.nbDims}));
    }
    stream_.synchronize();
    for (auto& [name, tensor] : results) std::memcpy(tensor.data.data(), buffer(name).host.get(), tensor.data.size());
    if (kept) {
      for (auto& [input, buffers] : kept->buffers) {
        if (buffers.write) buffers.read.swap(buffers.write);  // what this run wrote is what the next one reads
      }
    }
    return results;
  }

 private:
  struct Buffer {
    size_t bytes = 0;  // at the largest shape
    cuda::DeviceMemory device;
    cuda::HostMemory host;
  };

  void add(const std::string& name, const FoundEngine& found) {
    const nvinfer1::Dims dims = engine_->getTensorShape(name.c_str());
    TensorSpec spec{name, dtype_of(name, engine_->getTensorDataType(name.c_str())), {}};
    const auto named = found.inputs.find(name);
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
      const bool known = named != found.inputs.end() && static_cast<size_t>(axis) < named->second.size();
      spec.shape.push_back({dims.d[axis], dims.d[axis] < 0 ? (known ? named->second[static_cast<size_t>(axis)].name : name + "." + std::to_string(axis)) : ""});
    }
    const bool is_input = engine_->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
    (is_input ? inputs_ : outputs_).push_back(std::move(spec));
  }

  /// Every dynamic input at its profile's upper end: no run needs more.
  void size_buffers() {
    for (const auto& spec : inputs_) {
      nvinfer1::Dims dims = engine_->getTensorShape(spec.name.c_str());
      if (is_dynamic(spec)) {
        dims = engine_->getProfileShape(spec.name.c_str(), 0, nvinfer1::OptProfileSelector::kMAX);
        if (!context_->setInputShape(spec.name.c_str(), dims)) throw EngineError("tensorrt refused the shape of " + spec.name);
      }
      buffers_[spec.name].bytes = bytes_of(dims, spec.dtype);
    }
    for (const auto& spec : outputs_) {
      const nvinfer1::Dims dims = context_->getTensorShape(spec.name.c_str());
      if (std::any_of(dims.d, dims.d + std::max(0, dims.nbDims), [](auto size) { return size < 0; })) {
        throw EngineError("the shape of output " + spec.name + " depends on values; engines here have shapes known before a run");
      }
      buffers_[spec.name].bytes = bytes_of(dims, spec.dtype);
    }
  }

  /// The buffers of a tensor outside any state, made when first needed.
  Buffer& buffer(const std::string& name) {
    Buffer& one = buffers_.at(name);
    if (!one.device) one.device = cuda::allocate(one.bytes), one.host = cuda::allocate_host(one.bytes);
    return one;
  }

  bool is_aliased([[maybe_unused]] const std::string& output, [[maybe_unused]] const std::string& input) const {
#if NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR >= 1015
    const char* name = engine_->getAliasedInputTensor(output.c_str());
    return name && input == name;
#else
    return false;
#endif
  }

  void bind_input(const std::string& name, const TensorView& array) {
    const size_t bytes = static_cast<size_t>(array.count()) * size_of(array.dtype);
    Buffer& one = buffer(name);
    if (bytes > one.bytes || !context_->setInputShape(name.c_str(), dims_of(array.shape))) {
      throw EngineError(name + " is larger than the engine was built for; build it for a larger --max-context");
    }
    std::memcpy(one.host.get(), array.data, bytes);
    cuda::check(cudaMemcpyAsync(one.device.get(), one.host.get(), bytes, cudaMemcpyHostToDevice, stream_.get()), "feeding " + name);
    bind(name, one.device.get());
  }

  void bind(const std::string& name, void* address) {
    if (!context_->setTensorAddress(name.c_str(), address)) throw EngineError("tensorrt refused the buffer of " + name + ": " + logger().last());
  }

  /// Put one inference on the stream, from the second one on as a CUDA graph; alone: no state is bound.
  void launch(bool alone) {
    if (alone && may_capture_ && is_warm_) {  // not at first: a first run allocates, which capture forbids
      may_capture_ = false;
      try {
        graph_ = std::make_unique<cuda::Graph>(stream_, [this] { enqueue(); });
      } catch (const EngineError& error) {
        std::fprintf(stderr, "tensorrt: no CUDA graph (%s); each run launches its kernels one by one\n", error.what());
      }
    }
    if (alone && graph_) return graph_->launch(stream_);
    enqueue();
    is_warm_ = true;
  }

  void enqueue() {
    if (!context_->enqueueV3(stream_.get())) throw EngineError("tensorrt could not run the engine: " + logger().last());
  }

  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  cuda::Stream stream_;
  std::map<std::string, Buffer> buffers_;
  std::unique_ptr<cuda::Graph> graph_;
  bool may_capture_ = false, is_warm_ = false;
};

FoundEngine found_here(const Bundle& bundle, const std::string& graph) {
  int device = 0;
  cudaDeviceProp info{};
  cuda::check(cudaGetDevice(&device), "asking for the GPU");
  cuda::check(cudaGetDeviceProperties(&info, device), "asking for the GPU");
  return find_engine(bundle, graph, version(), {info.name, info.major, info.minor});
}

std::unique_ptr<Engine> open(const Bundle& bundle, const std::string& graph) {
  return std::make_unique<TensorRTEngine>(found_here(bundle, graph));
}

std::optional<std::string> missing(const Bundle& bundle, const std::string& graph) {
  try {
    found_here(bundle, graph);
    return std::nullopt;
  } catch (const EngineError& error) {
    return error.what();
  }
}

}  // namespace
}  // namespace gridpool

extern "C" GRIDPOOL_API const gridpool::Backend gridpool_tensorrt_backend;
const gridpool::Backend gridpool_tensorrt_backend = {gridpool::kBackendInterface, gridpool::open, gridpool::missing};
