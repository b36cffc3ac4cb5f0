// The registry of backends.
#include "gridpool/engine.hpp"

#include "backend.hpp"
#include "library.hpp"
#include "split.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

/// The TensorRT backend's table; EngineError where it was not built, or its TensorRT is not installed.
const Backend& tensorrt() {
  static const Backend& backend = []() -> const Backend& {
    constexpr const char* name = "libgridpool_tensorrt.so";
    const std::filesystem::path beside = own_directory() / name;
    std::error_code failed;
    const Library library(std::filesystem::exists(beside, failed) ? beside.string() : name);
    const Backend& found = *library.function<const Backend>("gridpool_tensorrt_backend");
    if (found.interface_version != kBackendInterface) {
      throw EngineError(std::string(name) + " belongs to another build of gridpool; install both from one build");
    }
    return found;
  }();
  return backend;
}

std::optional<std::string> tensorrt_unavailable(const EngineOptions& options) {
  if (options.device != "cuda") return "TensorRT engines run on a GPU, not on " + options.device + "; pass --device cuda";
  try {
    return tensorrt().unavailable(options);
  } catch (const EngineError& error) {
    return "its library does not load (" + std::string(error.what()) + "); build this runtime where NvInfer.h is, and install TensorRT";
  }
}

std::optional<std::string> unavailable(const std::string& backend, const EngineOptions& options) {
  return backend == "onnx" ? onnx_unavailable(options) : tensorrt_unavailable(options);
}

std::unique_ptr<Engine> open(const std::string& backend, const Bundle& bundle, const std::string& graph, const EngineOptions& options) {
  if (graph == kVision && bundle.is_split()) {
    auto encoder = open(backend, bundle, kVisionEncoder, options);
    return std::make_unique<SplitVision>(std::move(encoder), open(backend, bundle, kVisionCompressor, options));
  }
  return backend == "onnx" ? open_onnx(bundle, graph, options) : tensorrt().open(bundle, graph, options);
}

}  // namespace

std::unique_ptr<Engine> open_engine(const Bundle& bundle, const std::string& graph, const std::string& backend,
                                    const EngineOptions& options) {
  if (options.device != "cpu" && options.device != "cuda") {
    throw EngineError("device is \"" + options.device + "\", expected \"cpu\" or \"cuda\"");
  }
  if (options.threads < 0) throw EngineError(format("threads is %d, expected 0 (the backend's choice) or more", options.threads));
  if (backend != "auto") {
    if (backend != "onnx" && backend != "tensorrt") throw EngineError("no backend \"" + backend + "\"" + nearest(backend, {"onnx", "tensorrt"}));
    if (const auto reason = unavailable(backend, options)) throw EngineError("backend " + backend + " can't run here: " + *reason);
    return open(backend, bundle, graph, options);
  }
  std::vector<std::string> reasons;
  for (const char* name : {"tensorrt", "onnx"}) {
    if (options.device == "cpu" && std::string(name) == "tensorrt") continue;
    auto reason = unavailable(name, options);
    if (!reason) {
      try {
        return open(name, bundle, graph, options);
      } catch (const UserError& error) {
        reason = error.what();
      }
    }
    reasons.push_back(std::string(name) + ": " + *reason);
  }
  throw EngineError("no backend can run " + graph + " on " + options.device + ": " + join(reasons, "; "));
}

}  // namespace gridpool
