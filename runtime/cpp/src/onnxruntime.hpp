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
  bool has_cuda;  // built for NVIDIA GPUs, be there one or not
};

/// The library, opened once per process. chosen: its path, or "" to look for it; bundle: `.venv` beside or above it is searched too.
/// EngineError if there is none, with what is wrong with each that was found.
OnnxRuntime& onnx_runtime(const std::string& chosen, const std::filesystem::path& bundle);

/// Why nothing runs on CUDA in this ONNX Runtime, "" if a small graph did. Tried once per process.
const std::string& cuda_fault(OnnxRuntime& ort);

}  // namespace gridpool
