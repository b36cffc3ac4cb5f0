#include "onnxruntime.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <sstream>
#include <vector>

#include "backend.hpp"
#include "library.hpp"
#include "text.hpp"

namespace gridpool {
namespace fs = std::filesystem;
namespace {

constexpr unsigned kOldestApi = 18;  // of ONNX Runtime 1.18: everything that is used here is in it

/// A libonnxruntime.so of a wheel; fault: why it must not be loaded, "" if it may be.
struct WheelLibrary {
  fs::path file;
  std::string fault;
};

std::string environment_variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// The libraries in lib/python3*/{site,dist}-packages of a Python environment, the newest release first.
std::vector<fs::path> libraries_of(const fs::path& environment) {
  std::vector<fs::path> found;
  std::error_code failed;
  for (const auto& python : fs::directory_iterator(environment / "lib", failed)) {
    if (python.path().filename().string().rfind("python3", 0) != 0) continue;
    for (const char* packages : {"site-packages", "dist-packages"}) {
      for (const auto& entry : fs::directory_iterator(python.path() / packages / "onnxruntime" / "capi", failed)) {
        if (entry.path().filename().string().rfind("libonnxruntime.so", 0) == 0) found.push_back(entry.path());
      }
    }
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

/// Whether only this user and root can change `file` and the directories from it up to `root`. Those above may belong to others: an
/// environment that they put there would not be this user's.
bool is_private(const fs::path& root, const fs::path& file) {
  const auto is_own = [](const fs::path& path) {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 && (info.st_uid == ::geteuid() || info.st_uid == 0) && (info.st_mode & S_IWOTH) == 0;
  };
  bool result = is_own(root);
  for (fs::path part = file; result && part != root && part.has_relative_path(); part = part.parent_path()) result = is_own(part);
  return result;
}

/// Add the libraries of a Python environment, links resolved. One that the user did not choose, but that was found by its place, is
/// used only if it is private.
void add(std::vector<WheelLibrary>& found, const fs::path& environment, bool is_chosen) {
  std::error_code failed;
  const fs::path root = fs::canonical(environment, failed);
  if (failed || environment.is_relative()) return;  // relative if a variable of the environment is not set
  for (const auto& library : libraries_of(root)) {
    const fs::path file = fs::canonical(library, failed);
    if (failed || std::any_of(found.begin(), found.end(), [&](const auto& other) { return other.file == file; })) continue;
    const bool is_safe = is_chosen || is_private(root, file);
    found.push_back({file, is_safe ? "" : "can be changed by other users; name it with --onnxruntime FILE if it is to be trusted"});
  }
}

/// The parent of the directory of the first python3 on the PATH: the prefix of that Python, a virtual environment's too.
fs::path prefix_of_python() {
  std::istringstream folders(environment_variable("PATH"));
  for (std::string folder; std::getline(folders, folder, ':');) {
    std::error_code failed;
    if (fs::path(folder).is_absolute() && fs::exists(fs::path(folder) / "python3", failed)) return fs::path(folder).parent_path();
  }
  return {};
}

/// The libraries of the activated environment (VIRTUAL_ENV), of a `.venv` in the current directory or in one above this library or
/// `bundle`, of the first python3 on the PATH, then of the user's and the system's packages.
std::vector<WheelLibrary> wheel_libraries(const fs::path& bundle) {
  std::vector<WheelLibrary> found;
  std::error_code failed;
  add(found, environment_variable("VIRTUAL_ENV"), true);
  add(found, fs::current_path(failed) / ".venv", false);
  for (fs::path folder : {own_directory(), fs::weakly_canonical(bundle, failed)}) {
    for (; folder.has_relative_path(); folder = folder.parent_path()) add(found, folder / ".venv", false);
  }
  add(found, prefix_of_python(), true);
  for (const fs::path& prefix : {fs::path(environment_variable("HOME")) / ".local", fs::path("/usr/local"), fs::path("/usr")}) {
    add(found, prefix, true);
  }
  return found;
}

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
    const auto providers = Ort::GetAvailableProviders();
    const bool has_cuda = std::find(providers.begin(), providers.end(), "CUDAExecutionProvider") != providers.end();
    return {version, Ort::Env(ORT_LOGGING_LEVEL_ERROR, "gridpool"), has_cuda};
  } catch (const Ort::Exception& error) {
    throw EngineError(name + " does not start: " + error.what());
  }
}

OnnxRuntime open_first(const fs::path& bundle) {
  std::vector<WheelLibrary> libraries = wheel_libraries(bundle);
  libraries.insert(libraries.begin(), {"libonnxruntime.so.1", ""});  // the system's
  std::vector<std::string> refused;
  for (const auto& [file, fault] : libraries) {
    try {
      if (fault.empty()) return open_library(file.string());
      refused.push_back(file.string() + " " + fault);
    } catch (const EngineError& error) {
      refused.emplace_back(error.what());
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
  if (!ort.has_cuda) return "this onnxruntime has no CUDA provider; name the library of the GPU wheel with --onnxruntime FILE";
  if (!cuda_driver().fault.empty()) return cuda_driver().fault;
  try {
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

const std::string& cuda_fault(OnnxRuntime& ort) {
  static const std::string fault = try_cuda(ort);
  return fault;
}

}  // namespace gridpool
