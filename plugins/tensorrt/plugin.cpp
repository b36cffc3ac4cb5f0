// gridpool::StGridPool as an IPluginV3, one source for TensorRT 10.3 to 11.x. Validates, launches, serializes; csrc/ computes.
#include <NvInfer.h>

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../csrc/plan.h"
#include "../csrc/st_gridpool.h"

namespace gridpool {
namespace {

using namespace nvinfer1;

constexpr char const* kName = "StGridPool";
constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "gridpool";

// Logs an error; -1, TensorRT's status of one.
int32_t report(std::string const& message) noexcept {
  if (ILogger* logger = getLogger()) logger->log(ILogger::Severity::kERROR, ("gridpool::StGridPool: " + message).c_str());
  return -1;
}

// Attributes of the op that an engine keeps; plan is made at export by plugins/plan.py, from the others and T, H, W.
struct Attributes {
  std::vector<int32_t> plan;
  float temperature = 1.0f, order = 2.0f;
};

Plan view(Attributes const& attributes) { return {attributes.plan.data(), static_cast<int>(attributes.plan.size())}; }

bool read(PluginFieldCollection const* fields, Attributes& attributes) {
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    PluginField const& field = fields->fields[i];
    std::string const name = field.name;
    bool const plan = name == "plan";
    if (!plan && name != "temperature" && name != "order") continue;
    if (plan ? field.type != PluginFieldType::kINT32 : field.type != PluginFieldType::kFLOAT32 || field.length != 1)
      return report("attribute " + name + " has another type than this plugin, version 1, expects; export the graph again"), false;
    if (plan)
      attributes.plan.assign(static_cast<int32_t const*>(field.data), static_cast<int32_t const*>(field.data) + field.length);
    else
      (name == "order" ? attributes.order : attributes.temperature) = *static_cast<float const*>(field.data);
  }
  if (char const* fault = view(attributes).fault()) return report(fault), false;
  bool const order = attributes.order >= 1.0f && (attributes.order <= 8.0f || std::isinf(attributes.order));
  if (!order || !(attributes.temperature >= 0.0f) || std::isinf(attributes.temperature))
    return report("order must be 1 to 8 or inf, temperature finite and not negative"), false;
  return true;
}

class StGridPool final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
 public:
  explicit StGridPool(Attributes attributes) : attributes_(std::move(attributes)) {}  // `read` has checked them

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  IPluginV3* clone() noexcept override try {
    return new StGridPool(*this);
  } catch (std::exception const& error) {
    return report(error.what()), nullptr;
  }

  AsciiChar const* getPluginName() const noexcept override { return kName; }
  AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }

  int32_t getOutputDataTypes(DataType* outputs, int32_t, DataType const* inputs, int32_t) const noexcept override {
    outputs[0] = inputs[0];
    return 0;
  }

  int32_t getOutputShapes(DimsExprs const* inputs, int32_t inputCount, DimsExprs const*, int32_t, DimsExprs* outputs,
                          int32_t outputCount, IExprBuilder& builder) noexcept override {
    if (inputCount != 1 || outputCount != 1 || inputs[0].nbDims != 4) return report("expected one input [T, H, W, D]");
    int const* plan = attributes_.plan.data();
    for (int i = 0; i < 3; ++i)
      if (inputs[0].d[i]->isConstant() && inputs[0].d[i]->getConstantValue() != plan[1 + i])
        return report("the input's T, H, W are not those that the plan was made for; export the graph again");
    outputs[0].nbDims = 4;
    outputs[0].d[0] = builder.constant(plan[1]);
    outputs[0].d[1] = builder.constant(plan[4]);
    outputs[0].d[2] = builder.constant(plan[5]);
    outputs[0].d[3] = inputs[0].d[3];
    return 0;
  }

  bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
    PluginTensorDesc const& tensor = tensors[position].desc;
    bool const supported = tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF || tensor.type == DataType::kBF16;
    return supported && tensor.format == TensorFormat::kLINEAR && tensor.type == tensors[0].desc.type;
  }

  int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept override {
    return 0;
  }

  size_t getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t, DynamicPluginTensorDesc const*,
                          int32_t) const noexcept override {
    size_t const bytes = inputs[0].desc.type == DataType::kFLOAT ? 4 : 2;
    return bytes * view(attributes_).scratch_tokens() * static_cast<size_t>(inputs[0].max.d[3]);
  }

  // Called before any run, by the builder too.
  int32_t onShapeChange(PluginTensorDesc const* inputs, int32_t, PluginTensorDesc const*, int32_t) noexcept override {
    Dims const& dims = inputs[0].dims;
    for (int i = 0; i < 3; ++i)
      if (dims.d[i] != attributes_.plan[1 + i]) return report("the input's T, H, W are not those that the plan was made for");
    return dims.d[3] % 8 ? report("D is not a multiple of 8; use the plain graph") : 0;
  }

  int32_t enqueue(PluginTensorDesc const* inputs, PluginTensorDesc const*, void const* const* sources, void* const* targets,
                  void* workspace, cudaStream_t stream) noexcept override {
    if (!device_plan_) return report("not attached to a context");
    DataType const type = inputs[0].type;  // one of those that supportsFormatCombination accepts
    DType const dtype = type == DataType::kFLOAT ? DType::kFloat : type == DataType::kHALF ? DType::kHalf : DType::kBFloat16;
    cudaError_t const status = launch(view(attributes_), device_plan_.get(), dtype, static_cast<int>(inputs[0].dims.d[3]),
                                      attributes_.temperature, attributes_.order, sources[0], workspace, targets[0], stream);
    if (status == cudaSuccess) return 0;
    bool const other_gpu = status == cudaErrorNoKernelImageForDevice;
    return report(std::string(cudaGetErrorString(status)) +
                  (other_gpu ? "; build the plugin library for this GPU (CMAKE_CUDA_ARCHITECTURES)" : ""));
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override {
    std::unique_ptr<StGridPool> copy(static_cast<StGridPool*>(clone()));
    if (!copy) return nullptr;
    size_t const bytes = attributes_.plan.size() * sizeof(int);
    void* memory = nullptr;
    cudaError_t status = cudaMalloc(&memory, bytes);
    if (status == cudaSuccess) {
      copy->device_plan_.reset(static_cast<int*>(memory), [](int* plan) { cudaFree(plan); });
      status = cudaMemcpy(memory, attributes_.plan.data(), bytes, cudaMemcpyHostToDevice);
    }
    return status == cudaSuccess ? copy.release() : (report(cudaGetErrorString(status)), nullptr);
  }

  // What the engine keeps; `read` reads it back.
  PluginFieldCollection const* getFieldsToSerialize() noexcept override {
    fields_ = {{"plan", attributes_.plan.data(), PluginFieldType::kINT32, static_cast<int32_t>(attributes_.plan.size())},
               {"temperature", &attributes_.temperature, PluginFieldType::kFLOAT32, 1},
               {"order", &attributes_.order, PluginFieldType::kFLOAT32, 1}};
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  }

 private:
  Attributes attributes_;
  std::shared_ptr<int> device_plan_;  // uploaded when the plugin is attached to a context, i.e. where it will run
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_{};
};

class StGridPoolCreator final : public IPluginCreatorV3One {
 public:
  AsciiChar const* getPluginName() const noexcept override { return kName; }
  AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }
  PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }

  IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept override try {
    Attributes attributes;
    return read(fields, attributes) ? new StGridPool(std::move(attributes)) : nullptr;
  } catch (std::exception const& error) {
    return report(error.what()), nullptr;
  }

 private:
  PluginField const fields_[3] = {{"plan", nullptr, PluginFieldType::kINT32, 1},
                                  {"temperature", nullptr, PluginFieldType::kFLOAT32, 1},
                                  {"order", nullptr, PluginFieldType::kFLOAT32, 1}};
  PluginFieldCollection const collection_{3, fields_};
};

}  // namespace
}  // namespace gridpool

// What TensorRT looks for in a library that is given to setPluginsToSerialize, trtexec --staticPlugins or loadLibrary.
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static gridpool::StGridPoolCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
