// ONNX Runtime, opened at run time: the library that was named, the system's, or that of a Python wheel.
//
// Nothing of its C++ interface may exist before `onnx_runtime` has returned: its destructors call the library.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <string>

namespace gridpool {

struct OnnxRuntime {
  std::string version;
  Ort::Env environment;
};

/// The library, opened once a process. chosen: its path, or "" to look for it; bundle: whose `.venv` beside or above is looked into.
/// EngineError if there is none, with the fault of each that was found.
OnnxRuntime& onnx_runtime(const std::string& chosen, const std::filesystem::path& bundle);

/// Whether this library was built for NVIDIA GPUs, be there one or not.
bool has_cuda_provider(OnnxRuntime& ort);

/// Why nothing runs on CUDA in this ONNX Runtime, "" if a small graph did. Tried once a process.
const std::string& cuda_fault(OnnxRuntime& ort);

}  // namespace gridpool
