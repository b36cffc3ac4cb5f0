// The backends behind open_engine, and the GPU that they could run on. TensorRT's is a separate shared object, opened on demand.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "gridpool/engine.hpp"

namespace gridpool {

/// name: of the first NVIDIA GPU; fault: why there is none, "" if there is one.
struct CudaDriver {
  std::string name, fault;
};

/// Asked once per process, and of the driver alone, so that a machine without a GPU needs no other library to know it.
const CudaDriver& cuda_driver();

/// Why this backend can't run on `options.device` here, as one line with what to do; none if it can.
std::optional<std::string> onnx_unavailable(const Bundle& bundle, const EngineOptions& options);
/// Whether the ONNX Runtime here is one for NVIDIA GPUs, be there one or not.
bool onnx_has_cuda(const Bundle& bundle, const EngineOptions& options);
std::unique_ptr<Engine> open_onnx(const Bundle& bundle, const std::string& graph, const EngineOptions& options);

/// What libgridpool_tensorrt.so exports, as `gridpool_tensorrt_backend`; both sides are built from this header.
struct Backend {
  int interface_version;  // kBackendInterface of the headers that it was built with
  std::unique_ptr<Engine> (*open)(const Bundle& bundle, const std::string& graph);
  std::optional<std::string> (*missing)(const Bundle& bundle, const std::string& graph);  ///< why no engine of `graph` can be used here
};
inline constexpr int kBackendInterface = 3;

}  // namespace gridpool
