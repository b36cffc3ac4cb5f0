#include "onnxruntime.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <vector>

#include "cuda_driver.hpp"
#include "gridpool/error.hpp"
#include "library.hpp"
#include "text.hpp"
#include "wheels.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr unsigned kOldestApi = 18;  // of ONNX Runtime 1.18: everything that is used here is in it

/// Open one library. EngineError, beginning with its name, if it is not an ONNX Runtime that can be used here.
OnnxRuntime open_library(const std::string& name) {
  const Library library(name);
  const OrtApiBase* base = library.function<const OrtApiBase*()>("OrtGetApiBase")();
  const char* version = base ? base->GetVersionString() : nullptr;
  if (!version) throw EngineError(name + " does not say which ONNX Runtime it is; expected 1." + std::to_string(kOldestApi) + " or newer");
  unsigned major = 0, minor = 0;
  if (std::sscanf(version, "%u.%u", &major, &minor) != 2 || major != 1 || minor < kOldestApi) {
    throw EngineError(name + " is ONNX Runtime " + version + ", expected 1." + std::to_string(kOldestApi) + " or newer");
  }
  const OrtApi* api = base->GetApi(std::min<uint32_t>(ORT_API_VERSION, minor));
  if (!api) throw EngineError(name + " is ONNX Runtime " + version + " without the interface of that release; install it again");
  Ort::InitApi(api);
  try {
    return {version, Ort::Env(ORT_LOGGING_LEVEL_ERROR, "gridpool")};
  } catch (const Ort::Exception& error) {
    throw EngineError(name + " does not start: " + error.what());
  }
}

OnnxRuntime open_first(const fs::path& bundle) {
  std::vector<std::string> refused;
  const auto attempt = [&](const std::string& name) -> std::optional<OnnxRuntime> {
    try {
      return open_library(name);
    } catch (const EngineError& error) {
      refused.emplace_back(error.what());
      return std::nullopt;
    }
  };
  if (auto opened = attempt("libonnxruntime.so.1")) return std::move(*opened);
  for (const auto& [file, fault] : wheel_libraries(bundle)) {
    if (!fault.empty()) {
      refused.push_back(file.string() + " " + fault);
    } else if (auto opened = attempt(file.string())) {
      return std::move(*opened);
    }
  }
  throw EngineError("ONNX Runtime was not found (" + join(refused, "; ") +
                    "); pip install onnxruntime, or name the library with --onnxruntime FILE");
}

OnnxRuntime open_chosen(const std::string& chosen) {
  std::error_code failed;
  const bool is_here = chosen.find('/') == chosen.npos && fs::exists(chosen, failed);  // dlopen takes a bare name for the system's
  try {
    return open_library(is_here ? "./" + chosen : chosen);
  } catch (const EngineError& error) {
    throw EngineError("ONNX Runtime does not open: " + std::string(error.what()) + "; name another library with --onnxruntime FILE");
  }
}

/// y = x + x of one float: what must run before a device is believed to work.
/// ModelProto {ir_version 8, graph {Add(x, x) -> y, name "g", x, y: float[1]}, opset_import {version 13}}; as in runtime/engine/onnx.py.
constexpr unsigned char kAddition[] = {
    0x08, 0x08, 0x3a, 0x35, 0x0a, 0x0e, 0x0a, 0x01, 0x78, 0x0a, 0x01, 0x78, 0x12, 0x01, 0x79, 0x22, 0x03, 0x41, 0x64, 0x64, 0x12,
    0x01, 0x67, 0x5a, 0x0f, 0x0a, 0x01, 0x78, 0x12, 0x0a, 0x0a, 0x08, 0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x62, 0x0f,
    0x0a, 0x01, 0x79, 0x12, 0x0a, 0x0a, 0x08, 0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x42, 0x04, 0x0a, 0x00, 0x10, 0x0d};

std::string try_cuda(OnnxRuntime& ort) {
  try {
    if (!has_cuda_provider(ort)) {
      return "this onnxruntime has no CUDA provider; name the library of the GPU wheel with --onnxruntime FILE";
    }
    const CudaDriver& driver = cuda_driver();
    if (!driver.fault.empty()) return driver.fault;
    Ort::SessionOptions settings;
    settings.AppendExecutionProvider_CUDA(OrtCUDAProviderOptions{});
    Ort::Session session(ort.environment, kAddition, sizeof kAddition, settings);
    float one = 1;
    const int64_t shape[] = {1};
    const char *input = "x", *output = "y";
    const auto value = Ort::Value::CreateTensor<float>(Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU), &one, 1, shape, 1);
    const auto results = session.Run(Ort::RunOptions{nullptr}, &input, &value, 1, &output, 1);
    return results.at(0).GetTensorData<float>()[0] == 2 ? "" : "CUDA computes 1 + 1 wrongly; check the driver";
  } catch (const Ort::Exception& error) {
    return "CUDA does not start in ONNX Runtime " + ort.version + ": " + error.what();
  }
}

}  // namespace

OnnxRuntime& onnx_runtime(const std::string& chosen, const fs::path& bundle) {
  static std::mutex mutex;
  static std::optional<OnnxRuntime> opened;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!opened) {
    ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // else Microsoft's builds send data about sessions and models; 0: the user's setting stays
    opened.emplace(chosen.empty() ? open_first(bundle) : open_chosen(chosen));
  }
  return *opened;
}

bool has_cuda_provider(OnnxRuntime&) {
  try {
    const auto providers = Ort::GetAvailableProviders();
    return std::find(providers.begin(), providers.end(), "CUDAExecutionProvider") != providers.end();
  } catch (const Ort::Exception&) {
    return false;
  }
}

const std::string& cuda_fault(OnnxRuntime& ort) {
  static const std::string fault = try_cuda(ort);
  return fault;
}

}  // namespace gridpool
