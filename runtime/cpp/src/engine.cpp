// The registry of backends.
#include "gridpool/engine.hpp"

#include "backend.hpp"
#include "library.hpp"
#include "split.hpp"
#include "text.hpp"

namespace gridpool {
namespace {

EngineError cannot_run(const std::string& backend, const std::string& reason) {
  return EngineError("backend " + backend + " can't run here: " + reason);
}

/// The TensorRT backend's table; EngineError if it was not built, or its TensorRT is not installed.
const Backend& tensorrt() {
  static const Backend& backend = []() -> const Backend& {
    constexpr const char* name = "libgridpool_tensorrt.so";
    const std::filesystem::path beside = own_directory() / name;
    std::error_code failed;
    const Library library(std::filesystem::exists(beside, failed) ? beside.string() : name);
    const Backend& found = *library.function<const Backend>("gridpool_tensorrt_backend");
    if (found.interface_version != kBackendInterface) {
      throw EngineError(std::string(name) + " belongs to another build of gridpool; install both from the same build");
    }
    return found;
  }();
  return backend;
}

std::optional<std::string> unavailable(const std::string& backend, const Bundle& bundle, const EngineOptions& options) {
  if (backend == "onnx") return onnx_unavailable(bundle, options);
  if (options.device != "cuda") return "TensorRT engines run on a GPU, not on " + options.device + "; pass --device cuda";
  if (!cuda_driver().fault.empty()) return cuda_driver().fault;
  try {
    tensorrt();
    return std::nullopt;
  } catch (const EngineError& error) {
    return "its library does not load (" + std::string(error.what()) + "); build this runtime where NvInfer.h is found, and install TensorRT";
  }
}

std::unique_ptr<Engine> open(const std::string& backend, const Bundle& bundle, const std::string& graph, const EngineOptions& options) {
  if (graph == kVision && bundle.is_split()) {
    auto encoder = open(backend, bundle, kVisionEncoder, options);
    return std::make_unique<SplitVision>(std::move(encoder), open(backend, bundle, kVisionCompressor, options));
  }
  return backend == "onnx" ? open_onnx(bundle, graph, options) : tensorrt().open(bundle, graph);
}

/// The graphs that answer questions from `bundle`.
std::vector<std::string> graphs_of(const Bundle& bundle) {
  std::vector<std::string> graphs;
  if (bundle.is_split()) {
    graphs = {kVisionEncoder, kVisionCompressor};
  } else if (bundle.manifest().has_file("vision.onnx")) {
    graphs = {kVision};
  }
  if (bundle.has_llm()) graphs.emplace_back(kDecoder);
  return graphs;
}

/// Why `backend` does not run all of `bundle`.
std::optional<std::string> fault_of(const std::string& backend, const Bundle& bundle, const EngineOptions& options) {
  auto reason = unavailable(backend, bundle, options);
  if (reason || backend == "onnx") return reason;
  for (const auto& graph : graphs_of(bundle)) {
    if ((reason = tensorrt().missing(bundle, graph))) break;
  }
  return reason;
}

}  // namespace

Placement place(const Bundle& bundle, const std::string& backend, const EngineOptions& options) {
  if (options.device != "auto") return {options, ""};
  EngineOptions gpu = options, cpu = options;
  gpu.device = "cuda", cpu.device = "cpu";
  const CudaDriver& driver = cuda_driver();
  if (!driver.fault.empty()) {
    if (backend == "tensorrt") throw cannot_run(backend, driver.fault);
    return {cpu, onnx_has_cuda(bundle, options) ? "device cpu: " + driver.fault.substr(0, driver.fault.find(';')) : ""};
  }
  if (backend == "tensorrt") return {gpu, ""};  // it has no other device
  std::vector<std::string> reasons;
  for (const std::string name : {"tensorrt", "onnx"}) {
    if (backend != "auto" && backend != name) continue;
    const auto fault = fault_of(name, bundle, gpu);
    if (!fault) return {gpu, "device cuda: " + driver.name + ", backend " + name};
    reasons.push_back(name + ": " + *fault);
  }
  return {cpu, "device cpu, not " + driver.name + ": " + join(reasons, "; ")};
}

std::unique_ptr<Engine> open_engine(const Bundle& bundle, const std::string& graph, const std::string& backend,
                                    const EngineOptions& asked) {
  if (asked.device != "auto" && asked.device != "cpu" && asked.device != "cuda") {
    throw EngineError("device is \"" + asked.device + "\", expected auto, cpu or cuda");
  }
  if (asked.threads < 0) throw EngineError(concat("threads is ", asked.threads, ", expected 0 (the backend's choice) or more"));
  if (backend != "auto" && backend != "onnx" && backend != "tensorrt") {
    throw EngineError("backend is \"" + backend + "\", expected auto, onnx or tensorrt");
  }
  const EngineOptions options = place(bundle, backend, asked).options;
  if (backend != "auto") {
    if (const auto reason = unavailable(backend, bundle, options)) throw cannot_run(backend, *reason);
    return open(backend, bundle, graph, options);
  }
  std::vector<std::string> reasons;
  for (const std::string name : {"tensorrt", "onnx"}) {
    if (options.device == "cpu" && name == "tensorrt") continue;
    auto reason = unavailable(name, bundle, options);
    if (!reason) {
      try {
        return open(name, bundle, graph, options);
      } catch (const UserError& error) {
        reason = error.what();
      }
    }
    reasons.push_back(name + ": " + *reason);
  }
  throw EngineError("no backend can run " + graph + " on " + options.device + ": " + join(reasons, "; "));
}

}  // namespace gridpool
