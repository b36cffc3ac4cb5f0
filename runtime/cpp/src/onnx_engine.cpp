// An engine on ONNX Runtime.
//
// The state of a graph lives in OrtValues on the device; each is bound as input and as output of one run, and ONNX
// Runtime's ScatterElements/TensorScatter then update it where it is, copying nothing.
#include <algorithm>
#include <cstring>
#include <memory>

#include "backend.hpp"
#include "onnxruntime.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr ONNXTensorElementDataType kTypes[] = {  // in the order of DType
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,   ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};

DType dtype_of(const std::string& name, ONNXTensorElementDataType type) {
  const auto* found = std::find(std::begin(kTypes), std::end(kTypes), type);
  if (found == std::end(kTypes)) throw EngineError(concat(name, " has ONNX type ", static_cast<int>(type), ", which this runtime can't feed"));
  return static_cast<DType>(found - kTypes);
}

ONNXTensorElementDataType type_of(DType dtype) { return kTypes[static_cast<size_t>(dtype)]; }

/// The CUDA provider, with the options of runtime/engine/onnx.py: float32 products in float32, by default it rounds their factors to TF32,
/// ten bits of fraction; and memory as it is asked for, not in powers of two.
void append_cuda(Ort::SessionOptions& settings) {
  const OrtApi& api = Ort::GetApi();
  OrtCUDAProviderOptionsV2* created = nullptr;
  Ort::ThrowOnError(api.CreateCUDAProviderOptions(&created));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api.ReleaseCUDAProviderOptions)> options(created, api.ReleaseCUDAProviderOptions);
  const char* names[] = {"use_tf32", "arena_extend_strategy"};
  const char* values[] = {"0", "kSameAsRequested"};
  Ort::ThrowOnError(api.UpdateCUDAProviderOptions(options.get(), names, values, 2));
  settings.AppendExecutionProvider_CUDA_V2(*options);
}

struct OnnxState : State {
  using State::State;
  std::map<std::string, Ort::Value> values;  // by the input's name
};

class OnnxEngine : public Engine {
 public:
  OnnxEngine(OnnxRuntime& ort, const fs::path& model, const EngineOptions& options, bool exact_int8)
      : Engine("onnx", options.device) {
    Ort::SessionOptions settings;
    settings.SetLogSeverityLevel(3);
    settings.SetIntraOpNumThreads(options.threads);
    // int8 products without saturation, of graphs that quantize activations: see runtime/engine/onnx.py
    if (exact_int8) settings.AddConfigEntry("session.x64quantprecision", "1");
    try {
      if (device() == "cuda") append_cuda(settings);
      session_ = Ort::Session(ort.environment, model.c_str(), settings);
    } catch (const Ort::Exception& error) {
      throw EngineError("ONNX Runtime " + ort.version + " can't load " + model.string() + ": " + error.what());
    }
    const Ort::AllocatorWithDefaultOptions allocator;
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {
      inputs_.push_back(spec(session_.GetInputNameAllocated(i, allocator).get(), session_.GetInputTypeInfo(i)));
    }
    for (size_t i = 0; i < session_.GetOutputCount(); ++i) {
      outputs_.push_back(spec(session_.GetOutputNameAllocated(i, allocator).get(), session_.GetOutputTypeInfo(i)));
    }
  }

  std::unique_ptr<State> new_state(const std::map<std::string, std::string>& pairs) override {
    auto state = std::make_unique<OnnxState>(pairs);
    try {
      for (const auto& spec : inputs_) {
        if (pairs.count(spec.name)) state->values.emplace(spec.name, zeros(spec));
      }
    } catch (const Ort::Exception& error) {
      throw failed(error);
    }
    return state;
  }

  std::map<std::string, Tensor> run(const Feeds& feeds, State* state) override {
    check_feeds(inputs_, feeds, state);
    try {
      return run_bound(feeds, static_cast<OnnxState*>(state));
    } catch (const Ort::Exception& error) {
      throw failed(error);
    }
  }

 private:
  EngineError failed(const Ort::Exception& error) const { return EngineError("ONNX Runtime failed on " + device() + ": " + error.what()); }

  static TensorSpec spec(const char* name, const Ort::TypeInfo& type) {
    const auto info = type.GetTensorTypeAndShapeInfo();
    const std::vector<int64_t> sizes = info.GetShape();
    std::vector<const char*> names(sizes.size());
    info.GetSymbolicDimensions(names.data(), names.size());
    TensorSpec result{name, dtype_of(name, info.GetElementType()), {}};
    for (size_t axis = 0; axis < sizes.size(); ++axis) result.shape.push_back({sizes[axis], sizes[axis] < 0 ? names[axis] : ""});
    return result;
  }

  Ort::Value zeros(const TensorSpec& spec) {
    std::vector<int64_t> shape;
    for (const auto& dimension : spec.shape) {
      if (dimension.size < 0) throw EngineError(spec.name + " has no fixed shape, and a state has one; export the bundle again");
      shape.push_back(dimension.size);
    }
    if (device() == "cpu") {
      const Ort::AllocatorWithDefaultOptions allocator;
      auto value = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type_of(spec.dtype));
      std::memset(value.GetTensorMutableRawData(), 0, value.GetTensorTypeAndShapeInfo().GetElementCount() * size_of(spec.dtype));
      return value;
    }
    // The interface has no fill: an entry is read only once the graph has written it, so the GPU's memory stays as it came.
    if (!device_allocator_) device_allocator_ = Ort::Allocator(session_, Ort::MemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault));
    return Ort::Value::CreateTensor(device_allocator_, shape.data(), shape.size(), type_of(spec.dtype));
  }

  std::map<std::string, Tensor> run_bound(const Feeds& feeds, OnnxState* state) {
    const auto host = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    Ort::IoBinding binding(session_);
    for (const auto& [name, array] : feeds) {
      const size_t bytes = static_cast<size_t>(array.count()) * size_of(array.dtype);
      auto value = Ort::Value::CreateTensor(host, const_cast<void*>(array.data), bytes, array.shape.data(), array.shape.size(), type_of(array.dtype));
      binding.BindInput(name.c_str(), value);
    }
    if (state) {
      for (const auto& [input, value] : state->values) {
        binding.BindInput(input.c_str(), value);
        binding.BindOutput(state->pairs.at(input).c_str(), value);
      }
    }
    const std::vector<const TensorSpec*> wanted = returned(state);
    for (const TensorSpec* spec : wanted) binding.BindOutput(spec->name.c_str(), host);
    session_.Run(Ort::RunOptions{nullptr}, binding);
    const std::vector<Ort::Value> values = binding.GetOutputValues();  // in the order of binding: state first
    std::map<std::string, Tensor> results;
    for (size_t i = 0; i < wanted.size(); ++i) {
      const Ort::Value& value = values[values.size() - wanted.size() + i];
      Tensor tensor = Tensor::empty(wanted[i]->dtype, value.GetTensorTypeAndShapeInfo().GetShape());
      std::memcpy(tensor.data.data(), value.GetTensorRawData(), tensor.data.size());
      results.emplace(wanted[i]->name, std::move(tensor));
    }
    return results;
  }

  Ort::Session session_{nullptr};
  Ort::Allocator device_allocator_{nullptr};
};

}  // namespace

std::optional<std::string> onnx_unavailable(const Bundle& bundle, const EngineOptions& options) {
  try {
    OnnxRuntime& ort = onnx_runtime(options.onnxruntime, bundle.path());
    if (options.device == "cpu" || cuda_fault(ort).empty()) return std::nullopt;
    return cuda_fault(ort);
  } catch (const EngineError& error) {
    return error.what();
  }
}

bool onnx_has_cuda(const Bundle& bundle, const EngineOptions& options) {
  try {
    return onnx_runtime(options.onnxruntime, bundle.path()).has_cuda;
  } catch (const EngineError&) {
    return false;  // no ONNX Runtime at all, which opening an engine reports
  }
}

std::unique_ptr<Engine> open_onnx(const Bundle& bundle, const std::string& graph, const EngineOptions& options) {
  if (graph == kDecoder && bundle.manifest().attention == "flash" && options.device == "cpu") {
    throw EngineError(bundle.path().string() +
                      "'s decoder has flash attention, which ONNX Runtime computes on cuda alone: its CPU provider rounds the scores to "
                      "float16; pass --device cuda where a GPU is, or export with --attention portable");
  }
  // On a CPU frames one by one are faster, and take less memory, than all at once.
  const bool one_by_one = options.device == "cpu" && graph == kVision && bundle.manifest().has_file("vision.loop.onnx");
  const fs::path model = bundle.file((one_by_one ? kVisionLoop : graph) + ".onnx");
  OnnxRuntime& ort = onnx_runtime(options.onnxruntime, bundle.path());  // before anything that its interface would destroy
  try {
    return std::make_unique<OnnxEngine>(ort, model, options, graph.rfind("vision", 0) == 0);
  } catch (const Ort::Exception& error) {
    throw EngineError("ONNX Runtime can't run on " + options.device + ": " + error.what());
  }
}

}  // namespace gridpool
