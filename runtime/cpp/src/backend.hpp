// The backends behind open_engine. TensorRT's is a separate shared object, opened on demand.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "gridpool/engine.hpp"

namespace gridpool {

/// Why this backend can't run on `options.device` here, as one line with what to do; none if it can.
std::optional<std::string> onnx_unavailable(const Bundle& bundle, const EngineOptions& options);
/// Whether the ONNX Runtime here is one for NVIDIA GPUs, be there one or not.
bool onnx_has_cuda(const Bundle& bundle, const EngineOptions& options);
std::unique_ptr<Engine> open_onnx(const Bundle& bundle, const std::string& graph, const EngineOptions& options);

/// What libgridpool_tensorrt.so exports, as `gridpool_tensorrt_backend`; both sides are built from this header.
struct Backend {
  int interface_version;  // kBackendInterface of the headers that it was built with
  std::optional<std::string> (*unavailable)(const EngineOptions& options);
  std::unique_ptr<Engine> (*open)(const Bundle& bundle, const std::string& graph, const EngineOptions& options);
  std::optional<std::string> (*missing)(const Bundle& bundle, const std::string& graph);  ///< why no engine of `graph` serves here
};
inline constexpr int kBackendInterface = 2;

}  // namespace gridpool
