// gridpool::StGridPool as an IPluginV3, one source for TensorRT 10.3 to 11.x. It validates, launches and serialises; the maths is csrc/.
#pragma once

#include <NvInfer.h>

#include <memory>
#include <vector>

#include "../csrc/st_gridpool.h"

namespace gridpool {

// Attributes of the op that an engine keeps; plan is made at export by plugins/plan.py, from the others and T, H, W.
struct Attributes {
  std::vector<int32_t> plan;
  float temperature = 1.0f, order = 2.0f;
};

class StGridPool final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuild,
                         public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit StGridPool(Attributes attributes);  // the plan has been checked

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

  int32_t getNbOutputs() const noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t outputCount, nvinfer1::DataType const* inputs,
                             int32_t inputCount) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t inputCount, nvinfer1::DimsExprs const* shapeInputs,
                          int32_t shapeInputCount, nvinfer1::DimsExprs* outputs, int32_t outputCount,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t inputCount,
                                 int32_t outputCount) noexcept override;
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t inputCount,
                          nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t outputCount) noexcept override;
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t inputCount,
                          nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t outputCount) const noexcept override;

  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t inputCount, nvinfer1::PluginTensorDesc const* outputs,
                        int32_t outputCount) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* outputs, void const* const* sources,
                  void* const* targets, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  Attributes attributes_;
  std::shared_ptr<int> device_plan_;  // uploaded when the plugin is attached to a context, i.e. where it will run
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

class StGridPoolCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  StGridPoolCreator();
  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

 private:
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace gridpool
